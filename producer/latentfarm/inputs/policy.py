"""Which sources of input images a submission may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latentfarm.errors import InputError
from latentfarm.settings import Settings
from latentfarm.storage.bucket import Bucket

#: a pattern that fits every host
_ANY = "*"


@dataclass(frozen=True)
class InputPolicy:
    """The sources that a submission may use. Without any argument, they are data URLs alone.

    Attributes:
        folder: where the relative paths of local files begin; None: no local file may be read.
        bucket: the farm's bucket, of ``s3://`` objects and stored digests; None: neither may be read.
        any_bucket: whether ``s3://`` objects of other buckets may be read, with the credentials of the farm's.
        hosts: hosts of https URLs: names, ``*.example.org`` for all below one, or ``*`` for all.
        allow_private: whether these hosts may have addresses that are not public.
        read_file: returns the bytes of a stored file of the server, by an id such as ``file-...``; it raises
            ``InputError`` with problem and cure. None: there are none.
    """

    folder: Path | None = None
    bucket: Bucket | None = None
    any_bucket: bool = False
    hosts: tuple[str, ...] = ()
    allow_private: bool = False
    read_file: Callable[[str], bytes] | None = None

    @classmethod
    def of_user(cls, settings: Settings, bucket: Bucket | None, source: object) -> InputPolicy:
        """Return the policy of a submission on the user's own machine.

        Every file may be read that the user can read; relative paths begin at the folder of the prompt file, or at
        the working directory for rows and standard input. A prompt file of an object store names no local files: who
        wrote it does not know this machine.

        Args:
            settings: the hosts of URLs.
            bucket: the farm's bucket, None if it is not known yet.
            source: the prompt source, as ``Farm.submit`` takes it.
        """
        folder: Path | None = Path()
        if isinstance(source, str | Path) and source != "-":
            folder = None if str(source).startswith("s3://") else Path(source).parent
        hosts = parse_hosts(settings.input_hosts)
        return cls(folder, bucket, any_bucket=True, hosts=hosts, allow_private=settings.input_allow_private)

    @classmethod
    def of_server(
        cls, settings: Settings, bucket: Bucket, *, read_file: Callable[[str], bytes] | None = None
    ) -> InputPolicy:
        """Return the policy of the HTTP server's clients: no file of its machine, and no bucket but the farm's."""
        hosts = parse_hosts(settings.input_hosts)
        return cls(None, bucket, hosts=hosts, allow_private=settings.input_allow_private, read_file=read_file)

    def check_host(self, host: str) -> None:
        """Check that URLs may have a host.

        Raises:
            InputError: they may not. The text is problem and cure.
        """
        name = host.lower().rstrip(".")
        for pattern in self.hosts:
            if pattern in {_ANY, name} or (pattern.startswith("*.") and name.endswith(pattern[1:])):
                return
        allowed = f"allows {', '.join(self.hosts)}" if self.hosts else "is empty"
        raise InputError(
            f"has the host {name}, and LATENTFARM_INPUT_HOSTS {allowed}: add the host, or save the image to a file"
        )


def parse_hosts(text: str) -> tuple[str, ...]:
    """Return the hosts of a comma-separated list."""
    return tuple(host for part in text.split(",") if (host := part.strip().lower().rstrip(".")))
