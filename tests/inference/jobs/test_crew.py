"""Pieces of workers that end are done by others, each once."""

from __future__ import annotations

import pytest

pytest.importorskip("pyarrow")

from vision_ssm.errors import DataError
from vision_ssm.inference.jobs.crew import Report, carry_out
from vision_ssm.inference.jobs.plan import Piece
from vision_ssm.inference.jobs.references import Reference

PIECES = [Piece(number, (Reference(f"{number}.png", "file", ""),)) for number in range(5)]


class ScriptedCrew:
    """Workers that do as they are told, one report at a time: piece -> how many of its workers die."""

    def __init__(self, deaths=(), stillborn=0, error=None):
        self.deaths, self.stillborn, self.error = dict(deaths), stillborn, error
        self.hired, self.reports, self.dismissed = 0, [], False

    def hire(self):
        self.hired += 1
        self.stillborn -= 1
        gone = "the model did not fit" if self.stillborn >= 0 else ""
        self.reports.append(Report(self.hired, gone=gone))
        return self.hired

    def give(self, worker, piece):
        self.deaths[piece.number] = self.deaths.get(piece.number, 0) - 1
        if self.deaths[piece.number] >= 0:
            self.reports.append(Report(worker, gone="it was ended by signal 9"))
        else:
            self.reports.append(Report(worker, b"%d" % piece.number, error=self.error))

    def wait(self):
        return [self.reports.pop(0)]

    def dismiss(self):
        self.dismissed = True


def run(crew, workers=2):
    kept = []
    carry_out(crew, PIECES, workers, lambda piece, content: kept.append((piece.number, content)))
    return kept


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_each_piece_once_whoever_dies(workers):
    crew = ScriptedCrew(deaths={0: 2, 3: 1}, stillborn=2)
    assert sorted(run(crew, workers)) == [(number, b"%d" % number) for number in range(5)]
    assert crew.dismissed


def test_it_ends_where_workers_end_again_and_again():
    crew = ScriptedCrew(deaths={2: 3})
    with pytest.raises(DataError, match=r"3 workers ended during shard 2 .'2.png' to '2.png'., .* by signal 9"):
        run(crew)
    assert crew.dismissed
    with pytest.raises(DataError, match="ended before they had begun, the last one because the model did not fit"):
        run(ScriptedCrew(stillborn=3))
    with pytest.raises(ValueError, match="what the work raised"):
        run(ScriptedCrew(error=ValueError("what the work raised")))
