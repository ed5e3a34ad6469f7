"""Trains the text tower on the lexicon: `python -m textseg.train.text --plan plans/default -o plans/default`.

Every step draws texts that mean a structure, a finding, or one in the other. The tower's vector of a text is
pulled onto the target of what it means (`embeddings/targets.py`) and told apart from the targets of all else:
the other side, the same structure with and without the finding, the neighbouring rib.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from tokenizers import Tokenizer
from torch import Tensor

from textseg.atomic import write_bytes
from textseg.device import Compute, fastest_type
from textseg.embeddings.encoder import OwnTextEncoder, TextEncoder, embed_many, load_own_encoder
from textseg.embeddings.retrieval import measure_kinds
from textseg.embeddings.separation import CanonicalVectors, measure_separation
from textseg.embeddings.targets import KeptVectors, Place, Targets, places
from textseg.embeddings.text_plan import TextPlan
from textseg.embeddings.tower import TextTower, save_tower
from textseg.embeddings.vocabulary import build_vocabulary, encode, save_vocabulary
from textseg.plan import read_plan
from textseg.prompts import Lexicon, canonical_name, clean, default_lexicon, paraphrase, understand

REPORT_FILE = "text_report.json"

# How a side is said of what has none of its own.
LOPSIDED = ("{side} {x}", "{x} {side}", "{x}, {side}", "{side}-sided {x}", "{x} on the {side} side")

CPU = torch.device("cpu")

Progress = Callable[[int, int, dict[str, float]], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextRecipe:
    """How the tower is trained; none of it is needed to use the tower.

    Args:
        texts: how many paraphrases are written before the first step; steps draw from them again and again.
        batch: texts a step.
        findings_per_step: the findings that occur in one step; each of them in every place, and every place
            alone, is what a text is told apart from.
        without_finding, without_structure: the fractions of texts about a structure or a finding alone.
        lopsided: the fraction of texts that say a side of what has no sides ("left liver").
        foreign: how often one thing alone is named in German, French or Spanish.
        canonical, cleaned: the fractions of texts given as the words the tower sees when the lexicon knows
            the prompt, and as a prompt is cleaned; the rest are as they were typed.
        merge_dropout: how often the vocabulary leaves pieces of a word unmerged, so that rare words and
            typing errors are read letter by letter.
        dropout: of the token embeddings.
        temperature: of the softmax over everything a text could mean.
        pull: the weight of 1 - cosine to the target beside that softmax's cross-entropy.
        held, hold: where an earlier tower's vectors are kept, how many canonical texts each step has beside
            the others, and the weight of 1 - cosine to the vectors that they had.
        warmup: the fraction of the steps in which the learning rate rises.
        measured_texts: how many held-out paraphrases are measured at the end, in all and of every kind.
    """

    texts: int = 100_000
    batch: int = 256
    findings_per_step: int = 6
    without_finding: float = 0.5
    without_structure: float = 0.06
    lopsided: float = 0.06
    foreign: float = 0.25
    canonical: float = 0.15
    cleaned: float = 0.4
    merge_dropout: float = 0.05
    dropout: float = 0.05
    temperature: float = 0.05
    pull: float = 4.0
    held: int = 0
    hold: float = 0.0
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup: float = 0.05
    gradient_norm: float = 1.0
    measured_texts: int = 3000


# From a trained tower, larger steps would first forget what the next ones learn again. The canonical words
# have a loss of their own, without the noise that the other texts are read with.
KEEPING = TextRecipe(
    learning_rate=5e-4, texts=60_000, batch=192, foreign=0.35, canonical=0.0, held=128, hold=200.0
)
# Paraphrases are slow to write; each is drawn so often.
DRAWS_OF_A_TEXT = 4
# Canonical words that moved furthest in a step count once more.
WORST = 8


def train_text_tower(
    lexicon: Lexicon,
    plan: TextPlan,
    steps: int,
    seed: int,
    progress: Progress | None = None,
    recipe: TextRecipe | None = None,
    kept: OwnTextEncoder | None = None,
) -> tuple[TextTower, Tokenizer, dict[str, Any]]:
    """The trained tower, its vocabulary, and what was measured on held-out texts, in all and kind by kind.

    Args:
        steps: of the optimiser.
        seed: decides weights and texts. On one machine and without `merge_dropout`, whose chance `tokenizers`
            does not let us seed, the same seed gives the same tower.
        progress: is told the step, the steps and the losses after every step.
        kept: an earlier encoder of the same plan to go on from, whose vectors of canonical words are kept,
            for the networks that were trained on them.
    """
    recipe = recipe or TextRecipe()
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    texts = min(recipe.texts, max(1, steps * recipe.batch // DRAWS_OF_A_TEXT))
    course = Course(lexicon, plan, replace(recipe, texts=texts), random, kept)
    vocabulary = (
        copy.deepcopy(kept.vocabulary) if kept else build_vocabulary(course.words(), plan.vocabulary_size)
    )
    vocabulary.model.dropout = recipe.merge_dropout or None
    tower = TextTower(plan, recipe.dropout).train()
    if kept:
        tower.load_state_dict(kept.tower.state_dict())
    optimiser = torch.optim.AdamW(tower.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps, recipe.warmup))
    for step in range(1, steps + 1):
        told_apart, pulled = _losses(tower, vocabulary, course.draw(random), recipe.temperature)
        losses = {"cross-entropy": told_apart, "1 - cosine": pulled}
        total = told_apart + recipe.pull * pulled
        if kept:
            losses["moved"] = _moved(tower, kept, *course.held(random))
            total = total + recipe.hold * losses["moved"]
        optimiser.zero_grad()
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(tower.parameters(), recipe.gradient_norm)
        optimiser.step()
        schedule.step()
        if progress:
            progress(step, steps, {name: loss.item() for name, loss in losses.items()})
    vocabulary.model.dropout = None
    encoder = OwnTextEncoder(tower, vocabulary)
    return tower, vocabulary, measure(encoder, lexicon, seed, recipe.measured_texts, kept)


def measure(
    encoder: TextEncoder, lexicon: Lexicon, seed: int, texts: int, kept: TextEncoder | None = None
) -> dict[str, Any]:
    """What held-out texts say of an encoder, in all and kind by kind, and how far its vectors have moved."""
    canonical = CanonicalVectors(encoder, lexicon)
    figures: dict[str, Any] = dict(measure_separation(canonical, lexicon, seed, texts))
    figures["kinds"] = measure_kinds(canonical, lexicon, seed, max(1, texts // 5))
    if kept:
        figures["kept"] = measure_kept(encoder, kept, lexicon, seed, texts)
    return figures


def measure_kept(
    encoder: TextEncoder, kept: TextEncoder, lexicon: Lexicon, seed: int, texts: int
) -> dict[str, float]:
    """Cosines of an encoder's vectors with an earlier one's: of all concepts, and of findings in places."""
    random = np.random.default_rng(seed)
    structures, findings = lexicon.structures(), lexicon.findings()
    placed = [
        canonical_name(structures[random.integers(len(structures))], findings[random.integers(len(findings))])
        for _ in range(texts)
    ]
    figures: dict[str, float] = {}
    for name, words in (("concepts", lexicon.names()), ("findings in places", placed)):
        cosines = (embed_many(encoder, words) * embed_many(kept, words)).sum(dim=1)
        figures |= {
            f"cosine of {name}, lowest": round(float(cosines.min()), 5),
            f"cosine of {name}, mean": round(float(cosines.mean()), 5),
        }
    return figures


# What there is to learn.


@dataclass(frozen=True)
class Said:
    """A text, the canonical words of what it means, the row of that place and the column of that finding."""

    text: str
    canonical: str
    row: int
    column: int | None


@dataclass(frozen=True)
class Batch:
    """Texts, all they could mean as targets (candidates, width), and which one each means (texts,)."""

    texts: list[str]
    candidates: Tensor
    meant: Tensor


class Course:
    """All places and findings in them, their targets, and many ways to say them."""

    def __init__(
        self,
        lexicon: Lexicon,
        plan: TextPlan,
        recipe: TextRecipe,
        random: np.random.Generator,
        kept: TextEncoder | None = None,
    ) -> None:
        self._lexicon = lexicon
        self._recipe = recipe
        self._places = list(places(lexicon))
        self._findings = lexicon.findings()
        self._kept = KeptVectors(self._places, self._findings, kept) if kept else None
        self._targets = None if kept else Targets(self._places, self._findings, plan.vector_width)
        self._usual_rows = self._rows_of_usual_places()
        self._said: dict[int | None, list[Said]] = {}
        self._write(recipe.texts, random)

    def words(self) -> list[str]:
        """All texts and canonical words; what the vocabulary is made of."""
        return [words for said in self._said.values() for one in said for words in (one.text, one.canonical)]

    def draw(self, random: np.random.Generator) -> Batch:
        """A batch whose candidates are all places, alone and with findings of this step."""
        known = [column for column in self._said if column is not None]
        columns = [int(column) for column in random.permutation(known)[: self._recipe.findings_per_step]]
        drawn = []
        for _ in range(self._recipe.batch):
            column = None if random.random() < self._recipe.without_finding else int(random.choice(columns))
            said = self._said[column]
            drawn.append(said[int(random.integers(len(said)))])
        texts = [self._in_some_form(one, random) for one in drawn]
        if self._kept is not None:
            return Batch(texts, *self._kept_candidates(drawn, self._kept))
        assert self._targets is not None
        meant = [self._candidate(one, columns) for one in drawn]
        with_findings = self._targets.with_findings(columns).flatten(0, 1)
        return Batch(texts, torch.cat([self._targets.alone(), with_findings]), torch.tensor(meant))

    def held(self, random: np.random.Generator) -> tuple[list[str], Tensor]:
        """Canonical words and the vectors that they keep."""
        assert self._kept is not None
        return self._kept.draw(self._recipe.held, random)

    def _kept_candidates(self, drawn: Sequence[Said], kept: KeptVectors) -> tuple[Tensor, Tensor]:
        """Kept vectors of all places, and of what texts mean, on both sides; and which of them each means."""
        placed = [(said.row, said.column) for said in drawn if said.column is not None]
        words, vectors = kept.findings_around(placed)
        rows = {name: len(self._places) + row for row, name in enumerate(words)}
        meant = [said.row if said.column is None else rows[said.canonical] for said in drawn]
        return torch.cat([kept.alone(), vectors]), torch.tensor(meant)

    def _candidate(self, said: Said, columns: list[int]) -> int:
        """Where a text's meaning stands among the candidates: places alone, then every place's findings."""
        if said.column is None:
            return said.row
        return len(self._places) + said.row * len(columns) + columns.index(said.column)

    def _in_some_form(self, said: Said, random: np.random.Generator) -> str:
        """The canonical words, or the text cleaned as prompts are, or as it was typed."""
        form = random.random()
        if form < self._recipe.canonical:
            return said.canonical
        return clean(said.text) if form < self._recipe.canonical + self._recipe.cleaned else said.text

    def _write(self, texts: int, random: np.random.Generator) -> None:
        """So many texts, by their finding; each finding and no finding has at least one."""
        lopsided = [row for row, place in enumerate(self._places) if place.structure and place.lopsided]
        structures = [row for row, place in enumerate(self._places) if place.structure and not place.lopsided]
        anywhere = [row for row, place in enumerate(self._places) if place.structure is None]
        for at in range(texts):
            kind = random.random()
            column: int | None = at % len(self._findings)
            if kind < self._recipe.without_structure:
                row = int(random.choice(anywhere))
            else:
                kind -= self._recipe.without_structure
                row = int(random.choice(lopsided if kind < self._recipe.lopsided else structures))
                column = None if random.random() < self._recipe.without_finding else column
            self._said.setdefault(column, []).append(self._say(row, column, random))

    def _say(self, row: int, column: int | None, random: np.random.Generator) -> Said:
        place, finding = self._places[row], None if column is None else self._findings[column]
        text = paraphrase(
            place.structure, finding, random, self._lexicon, split="train", foreign=self._recipe.foreign
        )
        if place.lopsided:
            text = str(random.choice(LOPSIDED)).format(x=text, side=place.side)
        meant = row if column is None else self._usual_rows.get((row, column), row)
        return Said(text, place.words(finding), meant, column)

    def _rows_of_usual_places(self) -> dict[tuple[int, int], int]:
        """(row, column) to the row of the place that is meant, where the words name the finding alone.

        A glioma of the brain is called a glioma, so the brain's glioma and any glioma are one thing.
        """
        rows = {place: row for row, place in enumerate(self._places)}
        usual = {}
        for row, place in enumerate(self._places):
            for column, finding in enumerate(self._findings):
                words = place.words(finding)
                if words == Place(None, place.side).words(finding):
                    prompt = understand(words, self._lexicon)
                    usual[row, column] = rows[Place(prompt.structure, prompt.side)]
        return usual


# One step.


def _losses(
    tower: TextTower, vocabulary: Tokenizer, batch: Batch, temperature: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over everything a text could mean, and the mean of 1 - cosine to what it does mean."""
    ids, mask = encode(vocabulary, batch.texts, tower.plan.longest_tokens)
    with Compute(CPU, fastest_type(CPU)).autocast():
        vectors = _embed_by_length(tower, ids, mask)
    cosines = vectors @ batch.candidates.T
    pulled = 1 - cosines.gather(1, batch.meant[:, None]).mean()
    return F.cross_entropy(cosines / temperature, batch.meant), pulled


def _moved(tower: TextTower, kept: OwnTextEncoder, words: Sequence[str], vectors: Tensor) -> Tensor:
    """1 - cosine of canonical words, read without noise, to the vectors that they keep: mean and worst."""
    ids, mask = encode(kept.vocabulary, words, tower.plan.longest_tokens)
    tower.dropout.eval()
    with Compute(CPU, fastest_type(CPU)).autocast():
        embedded = _embed_by_length(tower, ids, mask)
    tower.dropout.train()
    distances = 1 - (embedded * vectors).sum(dim=1)
    # The mean alone leaves a few words far behind.
    return distances.mean() + distances.topk(min(WORST, len(words))).values.mean()


def _embed_by_length(tower: TextTower, ids: Tensor, mask: Tensor, parts: int = 4) -> Tensor:
    """The tower's vectors, short and long texts apart: most of a mixed batch would be padding."""
    lengths = mask.sum(dim=1)
    order = lengths.argsort()
    vectors = []
    for part in order.chunk(parts):
        longest = int(lengths[part].max())
        vectors.append(tower(ids[part, :longest], mask[part, :longest]))
    return torch.cat(vectors)[order.argsort()]


def _rate(step: int, steps: int, warmup: float) -> float:
    """The learning rate as a fraction of its peak: a line up, then half a cosine down to zero."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


# The command.


def main(
    plan: Annotated[Path, typer.Option(help="The plan, or the folder it lies in.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where tower, vocabulary and report go.")],
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 3000,
    seed: Annotated[int, typer.Option(help="Decides weights and texts.")] = 0,
    keep: Annotated[Path | None, typer.Option(help="A folder whose tower's vectors are kept.")] = None,
) -> None:
    """Train the text tower on the lexicon and write it into a model's folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    lexicon, numbers = default_lexicon(), read_plan(plan).text
    kept = load_own_encoder(keep, numbers) if keep else None
    recipe = KEEPING if keep else TextRecipe()
    started = time.monotonic()
    tower, vocabulary, figures = train_text_tower(lexicon, numbers, steps, seed, _log_progress, recipe, kept)
    report = {
        "command": f"python -m textseg.train.text {' '.join(sys.argv[1:])}",
        "date": datetime.now(UTC).date().isoformat(),
        "steps": steps,
        "seed": seed,
        "lexicon_sha256": lexicon_sha256(lexicon),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "kept": json.loads((keep / REPORT_FILE).read_text(encoding="utf-8")) if keep else None,
        "figures": figures,
    }
    save_text_tower(output, tower, vocabulary, report)
    _log.info("%s", json.dumps(figures, indent=1))


def save_text_tower(folder: Path, tower: TextTower, vocabulary: Tokenizer, report: dict[str, Any]) -> None:
    """Write tower, vocabulary and report into a model's folder; the weights carry the report's facts."""
    facts = {name: str(report[name]) for name in ("date", "steps", "seed", "lexicon_sha256")}
    save_vocabulary(vocabulary, folder)
    save_tower(tower, folder, facts)
    write_bytes(folder / REPORT_FILE, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def lexicon_sha256(lexicon: Lexicon) -> str:
    """Says which lexicon a tower was trained on."""
    records = [asdict(concept) for concept in lexicon.concepts.values()]
    return hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()


def _log_progress(step: int, steps: int, losses: dict[str, float]) -> None:
    if step % 100 == 0 or step == steps:
        told = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        _log.info("%d of %d: %s", step, steps, told)


if __name__ == "__main__":
    typer.run(main)
