"""``drafts``, ``finish`` and ``discard``: see the drafts of a batch, and pay for those that are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from latentfarm.batch import Batch
from latentfarm.batch_drafts import DraftReport, DraftSelection, DraftWork
from latentfarm.cli import draft_selection, options
from latentfarm.cli.confirmation import require_confirmation, require_terminal
from latentfarm.cli.draft_selection import format_indices, parse_selection
from latentfarm.cli.output import echo_err, format_duration, plural, print_json
from latentfarm.cli.shared import fail_if, wait_for
from latentfarm.cli.waiting import echo_warnings, warnings_of
from latentfarm.draft_ranking import number_of
from latentfarm.errors import InputError
from latentfarm.farm import Farm
from latentfarm.parallel import ordered_parallel_map

DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; print what is selected, costs and saves")]

#: drafts that --by lists unless --top names another number
_LISTED = 1_000
#: GPU hours below which minutes and seconds are printed
_LEAST_HOURS = 1.0
#: downloads of previews at the same time
_THREADS = 8


def drafts(
    batch: options.BatchName,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="FILE", help="Write contact sheets, FILE-2.png for the second one"),
    ] = None,
    indices: draft_selection.Indices = None,
    from_: draft_selection.FromFile = None,
    picked: draft_selection.Picked = False,
    rejected: draft_selection.Rejected = False,
    top: draft_selection.Top = None,
    by: draft_selection.By = "",
    distinct: draft_selection.Distinct = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per draft")] = False,
) -> None:
    """List the drafts of a batch, with their picks and scores; with --sheet, see them.

    The options select those that `finish` would. With --by, the best are listed first.

    Example: `latentfarm drafts cats --sheet drafts.png`
    """
    found = Farm.from_env().batch(batch)
    top = top or (by and str(_LISTED)) or None
    selection = parse_selection(
        batch, indices=indices, file=from_, picked=picked, rejected=rejected, top=top, by=by, distinct=distinct
    )
    listed: list[int] = []
    sheets = _Sheets(found, sheet, by) if sheet is not None else None
    lines = found.drafts(selection)
    while group := list(islice(lines, _sheet_images())):
        listed += [line["index"] for line in group]
        for line in group:
            typer.echo(json.dumps(_data(line), ensure_ascii=False) if as_json else _text(line))
        if sheets is not None:
            sheets.write(group)
    if listed:
        echo_err(f"`latentfarm finish {batch} --indices {format_indices(sorted(listed))}` renders them to their end")
    else:
        echo_err(f"{batch} has no such draft")


def finish(
    batch: options.BatchName,
    indices: draft_selection.Indices = None,
    from_: draft_selection.FromFile = None,
    picked: draft_selection.Picked = False,
    top: draft_selection.Top = None,
    by: draft_selection.By = "",
    distinct: draft_selection.Distinct = None,
    every: Annotated[bool, typer.Option("--all", help="Finish every draft")] = False,
    dry_run: DryRun = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until they have ended")] = False,
    as_json: options.Json = False,
) -> None:
    """Render drafts of a batch to their end, from where they stopped.

    Several options select the drafts that fit all of them. Drafts that were finished before count towards --top, so a
    command that is repeated, or was interrupted, finishes the same ones.

    Example: `latentfarm finish cats --top 10% --by sharpness --distinct 6`
    """
    found = Farm.from_env().batch(batch)
    selection = parse_selection(batch, indices=indices, file=from_, picked=picked, top=top, by=by, distinct=distinct)
    if every != (selection == DraftSelection()):
        raise InputError("finish: write which drafts, --indices, --from, --picked or --top, or --all without them")
    report = found.price_drafts(selection) if dry_run else found.finish(selection)
    if as_json:
        print_json(report.model_dump(exclude_none=not dry_run))
    elif dry_run:
        _print_price(report)
    else:
        typer.echo(f"{batch} {_outcome(report, 'finish', 'finishes', 'finished')}")
    if dry_run:
        return
    warnings = warnings_of(found.connection.ledger, found.status())
    echo_warnings({batch: warnings})
    if wait:
        fail_if(not wait_for(found, known=warnings).succeeded)


def discard(
    batch: options.BatchName,
    indices: draft_selection.Indices = None,
    from_: draft_selection.FromFile = None,
    picked: draft_selection.Picked = False,
    rejected: draft_selection.Rejected = False,
    top: draft_selection.Top = None,
    by: draft_selection.By = "",
    distinct: draft_selection.Distinct = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not prompt for confirmation")] = False,
    as_json: options.Json = False,
) -> None:
    """End drafts of a batch without an image: their jobs are cancelled, their checkpoints and previews deleted.

    Without an option that selects drafts, all that are left are discarded, after a prompt for confirmation.

    Example: `latentfarm discard cats --rejected`
    """
    found = Farm.from_env().batch(batch)
    selection = parse_selection(
        batch, indices=indices, file=from_, picked=picked, rejected=rejected, top=top, by=by, distinct=distinct
    )
    left = found.status().drafted
    if selection == DraftSelection() and left and not yes:
        require_terminal("discard")
        require_confirmation(f"Discard {plural(left, 'draft')} of batch {batch!r}?", "nothing was discarded")
    report = found.discard(selection)
    if as_json:
        print_json(report.model_dump(exclude_none=True))
    else:
        typer.echo(f"{batch} {_outcome(report, 'discard', 'discards', 'discarded')}")


def _outcome(report: DraftReport, verb: str, third_person: str, participle: str) -> str:
    """Return what became of a selection, as the end of a sentence that begins with the batch."""
    left = report.drafts - report.changed
    parts = [f"{third_person} {plural(report.changed, 'draft')}" if report.changed else f"has no draft to {verb}"]
    if report.before:
        parts.append(f"{report.before:,} of the selection {participle} before")
    if report.changed:
        parts.append(f"{plural(left, 'draft')} left" if left else "no draft is left")
    return "; ".join(parts)


def _print_price(report: DraftReport) -> None:
    price = report.price
    if price is None:
        return
    total = price.made.evaluations + price.finish.evaluations + price.saved.evaluations
    share = f" ({price.saved.evaluations / total:.0%} of all)" if total else ""
    before = f", {report.before:,} finished before" if report.before else ""
    rows = {
        "drafts": f"{report.drafts:,}, {report.selected:,} selected{before}",
        "made": _format_work(price.made),
        "to finish": _format_work(price.finish),
        "saved": f"{_format_work(price.saved)}{share}, if the others are discarded",
    }
    for name, text in rows.items():
        typer.echo(f"{name:<10} {text}")


def _format_work(work: DraftWork) -> str:
    text = plural(work.evaluations, "evaluation")
    if work.gpu_hours is None:
        return text
    if work.gpu_hours < _LEAST_HOURS:
        return f"{text}, {format_duration(3600 * work.gpu_hours)} of GPU time"
    return f"{text}, {work.gpu_hours:,.1f} GPU hours"


def _data(line: dict[str, Any]) -> dict[str, Any]:
    from latentfarm.fetch.serialize import flatten_result

    return flatten_result(line)


def _text(line: dict[str, Any]) -> str:
    scores = "  ".join(
        f"{name} {number:.4g}"
        if (number := number_of(line, f"scores.{name}")) is not None
        else f"{name} {value or '-'}"
        for name, value in (line.get("scores") or {}).items()
        if name != "phash"
    )
    done = f"{line['draft']['evaluations']}/{line['draft']['of']}"
    prompt = line["request"].get("prompt", "")
    return "  ".join(filter(None, (line["job"], done, line.get("pick") or "-", scores, prompt)))


def _sheet_images() -> int:
    from latentfarm.fetch.report import MAX_SHEET_IMAGES

    return MAX_SHEET_IMAGES


class _Sheets:
    """Writes contact sheets, each above the last: drafts with their indices and the number that orders them."""

    def __init__(self, batch: Batch, file: Path, by: str) -> None:
        self._batch = batch
        self._file = file
        self._by = by
        self._written = 0

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Download the previews of some drafts and write their sheet."""
        from latentfarm.fetch.atomic_files import atomic_write
        from latentfarm.fetch.contact_sheet import contact_sheet

        self._written += 1
        file = self._file
        if self._written > 1:
            file = file.with_stem(f"{file.stem}-{self._written}")
        with TemporaryDirectory() as folder:
            images = self._download(lines, Path(folder))
            with atomic_write(file) as opened:
                contact_sheet(images).save(opened, "PNG")
        echo_err(f"contact sheet: {file}")

    def _download(self, lines: Sequence[dict[str, Any]], folder: Path) -> list[tuple[Path, str]]:
        read = self._batch.connection.bucket.get
        images = []
        with closing(ordered_parallel_map(lines, lambda line: read(line["key"]), threads=_THREADS, group=1)) as found:
            for line, body in found:
                file = folder / Path(line["key"]).name
                file.write_bytes(body)
                images.append((file, self._label(line)))
        return images

    def _label(self, line: dict[str, Any]) -> str:
        number = number_of(line, self._by) if self._by else None
        shown = "" if number is None else f"{number:.4g}"
        return " ".join(filter(None, (str(line["index"]), shown, line.get("pick"), line["request"].get("prompt"))))
