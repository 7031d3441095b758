"""Evaluate five methods in the rehearsal world and the object relevance score, and write docs/evaluation.md's tables.

usage: python benchmarks/evaluation.py [--folder FOLDER]

A run that was stopped goes on where it ended.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from troupe_tools.dev.markdown_pages import replace_passage  # noqa: E402
from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402

EXAMPLE, PAGE = ROOT / "evaluation" / "rehearsal.toml", ROOT / "docs" / "evaluation.md"
RESULTS = ROOT / "benchmarks" / "evaluation.csv"
NOISE_EXAMPLE, NOISE_RESULTS = EXAMPLE.with_name("object_relevance.toml"), RESULTS.with_name("object_relevance.csv")
SEEDS = 30  # casts of each kind


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Evaluate five methods in the rehearsal world.")
    parser.add_argument("--folder", default="output/evaluation", help="of the results (default: %(default)s)")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    hide_broken_torchaudio()
    load_pack()
    from troupe.evaluation.results import TABLE
    from troupe.evaluation.run import evaluate
    from troupe.evaluation.settings import read_settings

    for example, results, more in (
        (EXAMPLE, RESULTS, [f"suite.seeds={SEEDS}"]),
        (NOISE_EXAMPLE, NOISE_RESULTS, []),
    ):
        folder = Path(options.folder) / results.stem
        settings = read_settings(example, [*more, f'output.folder="{folder.as_posix()}"'])
        evaluate(settings, lambda sentence: print(sentence, flush=True))
        shutil.copyfile(folder / TABLE, results)
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(page: str) -> str:
    """Return the page with the tables of RESULTS and NOISE_RESULTS between its marks."""
    from troupe.evaluation.report import tables_text
    from troupe.evaluation.results import read_table
    from troupe.evaluation.tables import score_table

    rows = read_table(RESULTS)
    seeds = sorted({int(row["seed"]) for row in rows})
    followed = sum(float(row["truth_prompt"]) == 1 for row in rows)
    said = (
        f"{len(rows)} pictures: casts {seeds[0]} to {seeds[-1]} of each kind, five methods, MIP-Adapter's rehearsal "
        "file, weight 1, 20 steps of euler, cfg 5. The truth is read by the recogniser, which also finds the subjects "
        "for `ip_sim`, `subjects_right` and `object_quality`; it does not judge their looks there. CLIP-I is counted "
        "by the rehearsal image encoder, DINOv2 and the subject collapse rate by the rehearsal DINOv2, CLIP-T and "
        "object quality by the rehearsal CLIP; DINO was not available. `ip_sim` and `subjects_right` compare the found "
        "subjects by the rehearsal DINOv2. The image encoder was trained on references on white paper, the DINOv2 on "
        "references and on parts of drawings, few of them whole. So `clip_i`, `dinov2` and the collapse rate, which "
        "compare whole pictures, say little about the published models here. The thresholds of the collapse rate are "
        "those of its paper, for the published DINOv2; nearly every subject is below them here. The DINOv2 tells looks "
        "apart much better than classes ([accuracy](../rehearsal/files/MODEL_CARD.md#accuracy)). What the figures "
        "show: a score of found subjects agrees with the truth better than one of the whole picture.\n\n"
        "CLIP-T and object quality agree with `truth_prompt` better than chance, but only a little. "
        f"{followed} of {len(rows)} pictures have every subject of their prompt, so there are few others, and the "
        "intervals are wide. And the CLIP is a small one: even of undisturbed drawings, one in five is nearer to a "
        "caption with another class than to its own ([accuracy](../rehearsal/files/MODEL_CARD.md#accuracy)). It says "
        "little about CLIP-T with the published CLIP."
    )
    noised = [row for row in read_table(NOISE_RESULTS) if row["object_relevance"]]
    relevance = (
        "### Object relevance\n\n"
        f"Noise of half the deviation of text attention, by merge relevance ({NOISE_EXAMPLE.name}), spread by the "
        "relevance of the first subject's name, or evenly. Even noise also changes figures more than the background, "
        "so compare the rows. Pictures in which the subject is not found without noise are left out.\n\n"
        f"{score_table(noised, ['object_relevance'])}"
    )
    return replace_passage(page, "evaluation", f"{said}\n\n{tables_text(rows, 'rehearsal', '###')}\n{relevance}")


if __name__ == "__main__":
    main()
