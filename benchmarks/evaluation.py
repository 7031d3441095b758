"""Evaluate five methods in the rehearsal world, and write the tables into docs/evaluation.md.

usage: python benchmarks/evaluation.py [--seeds N] [--folder FOLDER]

A run that was stopped goes on where it ended.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402

EXAMPLE, PAGE = ROOT / "evaluation" / "rehearsal.toml", ROOT / "docs" / "evaluation.md"
RESULTS = ROOT / "benchmarks" / "evaluation.csv"
MARKS = (
    "<!-- evaluation: from benchmarks/evaluation.csv, made by benchmarks/evaluation.py -->",
    "<!-- end of evaluation -->",
)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Evaluate five methods in the rehearsal world.")
    parser.add_argument("--seeds", type=int, default=30, help="casts of each kind (default: 30)")
    parser.add_argument("--folder", default="output/evaluation/page", help="of the results (default: %(default)s)")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    hide_broken_torchaudio()
    load_pack()
    from troupe.evaluation.results import TABLE
    from troupe.evaluation.run import evaluate
    from troupe.evaluation.settings import read_settings

    settings = read_settings(EXAMPLE, [f"suite.seeds={options.seeds}", f'output.folder="{options.folder}"'])
    evaluate(settings, lambda sentence: print(sentence, flush=True))
    shutil.copyfile(Path(options.folder) / TABLE, RESULTS)
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(page: str) -> str:
    """The page with the tables of RESULTS between its marks."""
    from troupe.evaluation.report import tables_text
    from troupe.evaluation.results import read_table

    rows = read_table(RESULTS)
    before, _, rest = page.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    seeds = sorted({int(row["seed"]) for row in rows})
    said = (
        f"{len(rows)} pictures: casts {seeds[0]} to {seeds[-1]} of each kind, five methods, MIP-Adapter's rehearsal "
        "file, weight 1, 20 steps of euler, cfg 5. The truth is read by the recogniser, which also finds the subjects "
        "for `ip_sim` and `subjects_right`; it does not judge their looks there. The rehearsal image encoder has no "
        "text side, so there is no CLIP-T, and DINO was not available. That encoder was trained on references on white "
        "paper and not on whole pictures, so these figures say little about CLIP-I with the published CLIP. What they "
        "show: a score of found subjects agrees with the truth better than one of the whole picture."
    )
    return f"{before}{MARKS[0]}\n{said}\n\n{tables_text(rows, 'rehearsal', '###')}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    main()
