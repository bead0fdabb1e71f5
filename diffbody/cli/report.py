"""What `diffbody restore` says: of each picture as it comes, and of the run at its end; as lines, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from diffbody.cli.console import BAD_INPUT, complain
from diffbody.files import FAILED, RESTORED, SKIPPED, LeftOut, Result, Summary, left_out_lines

if TYPE_CHECKING:
    from diffbody.cli.options import Verbosity


class Report:
    """Says what becomes of a run. Outputs go to stdout, a path a line; everything else goes to stderr.

    Args:
        verbosity: how much is said.
        single: the run was asked for one picture: no counts.
        names_outputs: False where stdout is the picture's own.
        hidden: part of paths that nobody asked for, such as a temporary folder's.
    """

    def __init__(self, verbosity: Verbosity, single: bool, names_outputs: bool = True, hidden: str = "") -> None:
        self.verbosity, self.single = verbosity, single
        self.names_outputs, self.hidden = names_outputs, hidden
        self._notices: dict[str, list[str]] = {}

    def left_out(self, left_out: Sequence[LeftOut]) -> None:
        """Say of each file that it is left out: in JSON only, as the end counts them."""
        if self.verbosity.as_json:
            for each in left_out:
                self._print_json(source=str(each.path), status="left out", reason=each.kind)

    def result(self, result: Result) -> None:
        """Say what became of a picture."""
        source = str(result.source).replace(self.hidden, "")
        for notice in result.notices:
            self._notices.setdefault(notice, []).append(source)
        if self.verbosity.as_json:
            self._print_json(
                source=source,
                status=result.status,
                output=None if result.output is None else str(result.output),
                side_pictures={name: str(path) for name, path in result.side_pictures.items()},
                seconds=round(result.seconds, 3),
                notices=list(result.notices),
                error=result.reason if result.status == FAILED else None,
                reason=None if result.status == FAILED else result.reason,
            )
        elif result.status == FAILED:
            complain((result.reason or "").replace(self.hidden, ""), "error" if self.single else "failed")
        else:
            self._say(result, source)

    def end(self, summary: Summary, left_out: Sequence[LeftOut]) -> None:
        """Say what became of the run.

        Raises:
            typer.Exit: with code 2, something failed.
        """
        if not self.verbosity.quiet and not self.verbosity.as_json:
            for notice, sources in self._notices.items():
                more = f" (and {len(sources) - 1} more)" if len(sources) > 1 else ""
                complain(f"{sources[0]}{more}: {notice}", "notice")
            if not self.single:
                for line in left_out_lines(left_out):
                    complain(line, "left out")
                print(_counts(summary), flush=True)
        if summary.error is not None:
            done = len(summary.results)
            rest = "" if self.single else f"; {done} done, {summary.left} left; the same command goes on"
            complain(f"{summary.error.replace(self.hidden, '')}{rest}")
        if summary.error is not None or summary.of(FAILED):
            raise typer.Exit(BAD_INPUT)

    def _say(self, result: Result, source: str) -> None:
        if result.status == RESTORED and self.names_outputs and not self.verbosity.quiet:
            for path in (result.output, *result.side_pictures.values()):
                print(path, flush=True)
        if self.verbosity.verbose:
            what = "skipped, done before" if result.status == SKIPPED else f"restored in {result.seconds:.1f} s"
            complain(f"{source}: {what}{f': {result.reason}' if result.reason else ''}", "done")

    def _print_json(self, **values: object) -> None:
        # In ASCII: a name that is no UTF-8 comes as escaped surrogates.
        print(json.dumps(values), flush=True)


def _counts(summary: Summary) -> str:
    restored, skipped, failed = (summary.of(status) for status in (RESTORED, SKIPPED, FAILED))
    again = sum(result.reason is not None for result in restored)
    parts = [
        f"restored {len(restored)}{f' ({again} of them again)' if again else ''}",
        *([f"skipped {len(skipped)} (done before; --overwrite repeats them)"] if skipped else []),
        f"failed {len(failed)}",
        *([f"left {summary.left}"] if summary.left else []),
    ]
    return ", ".join(parts)
