"""The dashboard: a page of plain ES modules and CSS, which uses ``/api`` only. Here are its files, and their paths."""

from __future__ import annotations

from latentfarm.server.dashboard.files import OPERATIONS

__all__ = ["OPERATIONS"]
