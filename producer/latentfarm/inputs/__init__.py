"""Input images of jobs: found, checked and stored at submission, decoded by workers.

A row names its inputs by sources: a file, an ``s3://`` object, an https URL, a file of the server, a data URL, or the
digest of an input that is stored. A submission stores each input once, unchanged, and the manifest has its digest.
"""
