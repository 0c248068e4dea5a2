"""The artifact: the folder in which a pruned recommender travels from `pruning` to `service`.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json
    recommender/manifest.json    `Manifest`: prompt, lineage, parameters, quality, reference answers,
                                 and the SHA-256 and size of every other file
    recommender/catalogue.parquet   recommender/trie.safetensors

Hugging Face and vLLM load the first line with no code of ours. The folder appears whole or not at all,
is never overwritten, holds no pickle, and is verified before use. `name@digest12`, the first twelve
hex digits of the manifest's SHA-256, identifies it everywhere.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from recommender.catalogue import Catalogue
from recommender.errors import ArtifactError, first_problem
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.search.architecture import Architecture
from recommender.search.transformer import LeanTransformer
from recommender.storage import new_directory, sha256_of, write_file
from recommender.trie import TitleTrie

SCHEMA_VERSION = 1
MANIFEST = Path("recommender/manifest.json")
CATALOGUE = Path("recommender/catalogue.parquet")
TRIE = Path("recommender/trie.safetensors")
CONFIG, WEIGHTS, TOKENIZER = Path("config.json"), Path("model.safetensors"), Path("tokenizer.json")
_REQUIRED = (CONFIG, WEIGHTS, TOKENIZER, CATALOGUE, TRIE)
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class StageRecord(_Record):
    """One pruning stage: the shape it left and the validation loss (nats per title) around it."""

    name: str
    shape: dict[str, int]
    loss_after_cut: float
    loss_after_restoration: float


class Lineage(_Record):
    """Where the weights come from."""

    dataset: str
    dataset_sha256: str
    base: str
    teacher_sha256: str
    recipe: str
    seed: int
    stages: tuple[StageRecord, ...]


class ParameterCounts(_Record):
    """Parameters of the model and of its teacher; the vocabulary's matrices are the difference."""

    nonembedding: int
    total: int
    teacher_nonembedding: int
    teacher_total: int


class Quality(_Record):
    """Ranking quality on the rows of one split, and what the teacher reaches on the same rows."""

    split: str
    rows: int
    hr10: float
    ndcg10: float
    teacher_hr10: float
    teacher_ndcg10: float
    popularity_ndcg10: float

    @property
    def retention_ndcg10(self) -> float:
        return self.ndcg10 / self.teacher_ndcg10


class ReferenceAnswer(_Record):
    """A request and what it must give: checked before a model serves."""

    history: tuple[str, ...]
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]


class FileRecord(_Record):
    """What a file must be."""

    sha256: str
    size: int


class Description(_Record):
    """Everything in the manifest that is known before the files are."""

    schema_version: int = SCHEMA_VERSION
    name: Annotated[str, Field(pattern=_NAME)]
    created: AwareDatetime
    prompt: PromptTemplate
    lineage: Lineage
    parameters: ParameterCounts
    quality: Quality | None
    reference: tuple[ReferenceAnswer, ...]
    reference_tolerance: float = 1e-3


class Manifest(Description):
    """The whole manifest; `files` maps POSIX paths below the artifact to what they must be."""

    files: dict[str, FileRecord]


def write_artifact(
    target: Path, description: Description, checkpoint: Path, catalogue: Catalogue, trie: TitleTrie
) -> Artifact:
    """Puts an artifact together: the checkpoint's Hugging Face files, then ours, the manifest last.

    Raises:
        InputError: `target` exists.
        ArtifactError: the checkpoint lacks a file.
    """
    with new_directory(target) as folder:
        for name in ("generation_config.json", "tokenizer_config.json", CONFIG, WEIGHTS, TOKENIZER):
            source = checkpoint / name
            if not source.is_file():
                raise ArtifactError(f"{checkpoint}: no {name}; it is not a whole checkpoint")
            shutil.copyfile(source, folder / name)
        (folder / MANIFEST.parent).mkdir()
        catalogue.to_parquet(folder / CATALOGUE)
        trie.save(folder / TRIE)
        (folder / TRIE).chmod(0o644)  # safetensors writes for its owner alone, who need not serve
        files = {
            path.relative_to(folder).as_posix(): FileRecord(
                sha256=sha256_of(path), size=path.stat().st_size
            )
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(**dict(description), files=files)
        write_file(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return Artifact.open(target)


@dataclass(frozen=True)
class Artifact:
    """An artifact whose manifest was read; `verify` says whether the files are what it says."""

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Reads the manifest.

        Raises:
            ArtifactError: there is none, it is damaged, or its schema version is not ours.
        """
        file = path / MANIFEST
        if not file.is_file():
            raise ArtifactError(f"{path}: no {MANIFEST}; make an artifact with `espalier export`")
        try:
            content = json.loads(file.read_bytes())
            version = content.get("schema_version")
            if version != SCHEMA_VERSION:
                raise ArtifactError(
                    f"{file}: schema version {version!r}; this release reads {SCHEMA_VERSION}: "
                    "export the run again, or use the release that wrote it"
                )
            manifest = Manifest.model_validate_json(file.read_bytes())
        except (ValueError, AttributeError) as error:
            detail = first_problem(error) if isinstance(error, ValidationError) else error
            raise ArtifactError(f"{file}: damaged ({detail}); export the run again") from error
        return cls(path, manifest, sha256_of(file))

    @property
    def identity(self) -> str:
        """`name@digest12`."""
        return f"{self.manifest.name}@{self.digest[:12]}"

    @property
    def nbytes(self) -> int:
        """Bytes of the files that the manifest names."""
        return sum(record.size for record in self.manifest.files.values())

    def verify(self) -> None:
        """Compares every file with the manifest.

        Raises:
            ArtifactError: a file is missing, differs, is not listed, or is a pickle.
        """
        present = {p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()}
        for name in sorted(present):
            if Path(name).suffix.lower() in _PICKLES:
                raise ArtifactError(f"{self.path}: {name} may be a pickle, which can run code; refused")
        listed = set(self.manifest.files)
        for name in sorted({path.as_posix() for path in _REQUIRED} - listed):
            raise ArtifactError(f"{self.path}: the manifest does not list {name}; export it again")
        for name in sorted(present - listed - {MANIFEST.as_posix()}):
            raise ArtifactError(f"{self.path}: {name} is not in the manifest; remove it")
        for name, record in sorted(self.manifest.files.items()):
            file = self.path / name
            if name not in present:
                raise ArtifactError(f"{self.path}: {name} is missing; copy the artifact again")
            if file.stat().st_size != record.size or sha256_of(file) != record.sha256:
                raise ArtifactError(
                    f"{self.path}: {name} is not what the manifest says; copy the artifact again"
                )

    @cached_property
    def architecture(self) -> Architecture:
        """The model's shape, from its config."""
        config: dict[str, Any] = json.loads((self.path / CONFIG).read_bytes())
        return Architecture.from_config(config)

    def load_catalogue(self) -> Catalogue:
        return Catalogue.from_parquet(self.path / CATALOGUE)

    def load_trie(self) -> TitleTrie:
        return TitleTrie.load(self.path / TRIE)

    def load_encoder(self) -> PromptEncoder:
        return PromptEncoder(self.manifest.prompt, Tokenizer.from_file(str(self.path / TOKENIZER)))

    def load_transformer(self, dtype: torch.dtype = torch.float32) -> LeanTransformer:
        """Loads the weights.

        Raises:
            ArtifactError: the weights are no safetensors file.
            UnsupportedModelError: they do not fit the config.
        """
        try:
            tensors = load_file(self.path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{self.path / WEIGHTS}: {error}") from error
        return LeanTransformer(self.architecture, tensors, dtype)
