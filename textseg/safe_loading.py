"""Other people's checkpoints: pickles that may rebuild tensors and plain values and can't run any code.

torch reads them with `weights_only=True`, an unpickler of its own that knows a fixed list of types. What
VoxTell, nnU-Net, STU-Net, SAT, MONAI, SAM and nnInteractive store beside their tensors needs a few more:
plain numbers of NumPy, and the options that a training script was started with (`argparse.Namespace`). They
are allowed for the length of one call. Whatever else a file asks for is refused by name before it is made.
"""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from textseg.errors import ModelError

# Where training code keeps the network's weights: nnU-Net v2, VoxTell and nnInteractive; SAT; STU-Net and
# Lightning; MONAI's handlers. SAM and MONAI bundles have them at the top, in no section at all.
SECTIONS = ("network_weights", "model_state_dict", "state_dict", "model")
# What torch's wrappers for several processes and for compilation put before every name.
WRAPPERS = ("module.", "_orig_mod.")
# Between a section and a tensor's own name, which has dots.
SEPARATOR = "/"

# torch stores tensors uncompressed; one that somebody has zipped again shrinks a little, never so much.
MOST_GROWTH = 4
MOST_ENTRIES = 100_000
# A training log of many structures has a hundred thousand entries; lists that hold one another have no end.
MOST_VALUES = 10_000_000
DEEPEST = 100

# Bool, whole and real numbers of every size: all that training logs hold.
_NUMBERS = "?bhilqBHILQefd"
_REFUSED = re.compile(r"GLOBAL (\S+)|unrecognized function (.+)|but got (.+)")
_allowing = threading.Lock()
_TENSOR = object()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    tensors: on the CPU, by section and name, such as "network_weights/encoder.stem.weight".
    facts: everything else by name, as plain Python values (numbers, strings, lists, dictionaries).
    """

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors and facts in a .pth, .pt or .safetensors file; nothing in the file can run.

    Raises:
        ModelError: the file is missing, truncated or damaged, unpacks to far more than its size, or holds
            anything but plain tensors and plain values.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return Checkpoint(path, load_safetensors(path), {})
    try:
        size = path.stat().st_size
        is_archive = zipfile.is_zipfile(path)
        starts_as_archive = _first_bytes(path) == b"PK\x03\x04"
    except OSError as error:
        raise ModelError(
            f"A checkpoint is a file that can be read, but {path} can't: {error.strerror}."
        ) from error
    if size == 0 or (starts_as_archive and not is_archive):
        raise _damaged(path, "it is empty" if size == 0 else "its end is missing")
    if is_archive:
        check_archive(path)
        _refuse_programs(path)
    content = _unpickled(path)
    if not isinstance(content, Mapping):
        raise ModelError(
            f"A checkpoint holds tensors by name, but {path} holds a {type(content).__name__} instead."
        )
    sorter = _Sorter(path, size)
    facts = sorter.plain(content, "", 0)
    sorter.check_storages()
    return Checkpoint(path, sorter.tensors, facts if isinstance(facts, dict) else {})


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        ModelError: the file is missing, truncated or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ModelError(
            f"A model's weights must lie in a file that can be read, but {path.name} can't be read: "
            f"{path.parent} does not hold it. Is it complete?"
        ) from error
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"A model's weights must be a whole safetensors file, but {path} can't be read "
            f"({_first_line(error)}). Fetch it again."
        ) from error


def load_fitting(path: Path, expected: Mapping[str, Tensor], most: int = 3) -> dict[str, Tensor]:
    """The tensors of a safetensors file that are those of a model of ours, no more and no less.

    Floating numbers, stored as float16, come as float32.

    Args:
        expected: the network's own tensors by name; only their shapes matter.
        most: how many misfits the error names.

    Raises:
        ModelError: the file is missing or damaged, its tensors do not fit, or hold NaN or infinity.
    """
    found = load_safetensors(path)
    misfits = [_in_words(*row) for row in _misfits(expected, found)]
    if misfits:
        more = f" and {len(misfits) - most} more" if len(misfits) > most else ""
        raise ModelError(
            f"A model's weights must fit its plan, but in {path} {'; '.join(misfits[:most])}{more}."
        )
    check_finite(found, path)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def network_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The network's own weights by name: out of the section that training code puts them in, unwrapped.

    Raises:
        ModelError: there is neither a known section nor a tensor outside of all sections.
    """
    tensors = checkpoint.tensors
    for section in SECTIONS:
        prefix = section + SEPARATOR
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if found:
            return _unwrapped(found)
    flat = {name: tensor for name, tensor in tensors.items() if SEPARATOR not in name}
    if not flat:
        held = ", ".join(dict.fromkeys(name.split(SEPARATOR)[0] for name in tensors)) or "no tensor at all"
        raise ModelError(
            f"A checkpoint keeps its network in {', '.join(SECTIONS)} or at the top, "
            f"but {checkpoint.path} has {held}."
        )
    return _unwrapped(flat)


def compare_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """A table of tensors that differ in shape or are on one side only, a line each; empty if all agree."""
    rows = _misfits(expected, found)
    if not rows:
        return []
    table = [("tensor", "expected", "found"), *((name, a or "-", b or "-") for name, a, b in rows)]
    first, second = (max(len(row[column]) for row in table) for column in (0, 1))
    return [f"{name:<{first}}  {wanted:<{second}}  {got}" for name, wanted, got in table]


def _misfits(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> list[tuple[str, str | None, str | None]]:
    """Name, shape expected and shape found of each tensor that differs; None where it is on one side only."""
    return [
        (name, _shape(expected.get(name)), _shape(found.get(name)))
        for name in dict.fromkeys((*expected, *found))
        if name not in expected or name not in found or expected[name].shape != found[name].shape
    ]


def _in_words(name: str, expected: str | None, found: str | None) -> str:
    if found is None:
        return f"{name} is missing"
    return f"{name} is unknown" if expected is None else f"{name} is {found} instead of {expected}"


def check_fit(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path, most: int = 20
) -> None:
    """Refuse weights that do not fit a network.

    Raises:
        ModelError: shapes differ, with a table of the first of them, or a tensor holds NaN or infinity.
    """
    table = compare_shapes(expected, found)
    if table:
        count = len(table) - 1
        more = [f"... and {count - most} more"] if count > most else []
        raise ModelError(
            f"Weights must fit their network, but {count} tensor(s) of {path} do not:\n"
            + "\n".join([*table[: most + 1], *more])
        )
    check_finite(found, path)


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are no numbers.

    Raises:
        ModelError: a tensor holds NaN or infinity.
    """
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        hold = "holds" if len(bad) == 1 else "hold"
        raise ModelError(
            f"Weights must be finite numbers, but in {path} {', '.join(bad[:3])}{more} {hold} NaN or "
            "infinity. Did the training diverge?"
        )


def check_archive(path: Path, most_growth: int = MOST_GROWTH) -> None:
    """Refuse a zip archive that would unpack to more than `most_growth` times its own size (a zip bomb).

    Raises:
        ModelError: it would, it has very many entries, or its directory is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(path, str(error)) from error
    size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
    if unpacked > most_growth * size:
        raise ModelError(
            f"A file of weights hardly shrinks when it is packed, but {path} of {size:,} bytes unpacks to "
            f"{unpacked:,}; it is not read, since it may be made to fill the memory."
        )
    if len(entries) > MOST_ENTRIES:
        raise ModelError(
            f"A checkpoint has at most {MOST_ENTRIES:,} entries, but {path} has {len(entries):,}."
        )


# ---- reading the pickle ----


def _unpickled(path: Path) -> Any:
    # The list of allowed types is global to torch: two threads must not take each other's away.
    with _allowing:
        known = torch.serialization.get_safe_globals()
        more = [entry for entry in _harmless() if entry not in known]
        try:
            with torch.serialization.safe_globals(more), warnings.catch_warnings():
                # It warns of newer protocols before it refuses them.
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # A damaged pickle can raise anything at all.
            refused = _refused(path, error)
            if refused:
                raise ModelError(
                    f"A checkpoint may hold only tensors and plain values, but {path} asks for {refused}, "
                    "which could run code, so nothing of it was loaded; ask for the weights as safetensors."
                ) from error
            if "Unsupported operand" in str(error):
                raise ModelError(
                    f"A checkpoint is pickled with protocol 2, torch's own, but {path} with another, which "
                    "can't be read safely; save it again without choosing a protocol."
                ) from error
            reason = str(error).strip().split("\n")[0].split(". ")[0]
            raise _damaged(path, reason or type(error).__name__) from error


def _harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The types beyond torch's own list: numbers and arrays of numbers of NumPy, and sets of options.

    NumPy moved the two functions that rebuild them, so files hold them by either name. Arrays of objects
    can't be rebuilt: the type of their dtype is not among these.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(0).__reduce__()[0]
    functions: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (function, f"numpy.{core}.multiarray.{function.__name__}")
        for function in (scalar, array)
        for core in ("core", "_core")
    ]
    types = {type(np.dtype(code)): None for code in _NUMBERS}
    # A namespace only keeps what is put into it.
    return [*functions, np.ndarray, np.dtype, *types, argparse.Namespace]


def _refused(path: Path, error: Exception) -> str | None:
    """What torch refused to make, by name; None where the file is merely damaged."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    match = _REFUSED.search(str(error))
    if match:
        name = next(group for group in match.groups() if group)
        return name.strip().rstrip(".")
    # Newer pickle protocols are refused as such; what the file is after is found by looking, not by running.
    names = [name for name in _names(path) if name.split(".")[0] not in ("torch", "collections", "numpy")]
    return ", ".join(dict.fromkeys(names[:3])) or None


def _names(path: Path) -> list[str]:
    """The functions and classes that a pickle names, as far as it can be followed without running it."""
    names: list[str] = []
    strings: list[str] = []
    try:
        for opcode, argument in _opcodes(path):
            if opcode in ("GLOBAL", "INST"):
                names.append(argument.replace(" ", "."))
            elif opcode == "STACK_GLOBAL" and len(strings) > 1:
                names.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile):
        pass  # the names up to the damage are still worth telling
    return names


def _opcodes(path: Path) -> Iterator[tuple[str, Any]]:
    for pickled in _pickles(path):
        for opcode, argument, _ in pickletools.genops(pickled):
            yield opcode.name, argument


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    yield io.BytesIO(archive.read(name))
    else:
        # Files of old torch: several pickles, one after the other.
        with path.open("rb") as file:
            for _ in range(4):
                yield file


def _refuse_programs(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        is_program = any(name.endswith("/constants.pkl") for name in archive.namelist())
    if is_program:
        raise ModelError(
            f"A checkpoint may hold only tensors and plain values, but {path} is a TorchScript program; "
            "ask for the weights themselves (in a MONAI bundle model.pt, not model.ts)."
        )


# ---- sorting what was read ----


@dataclass
class _Sorter:
    """Takes the tensors out of nested values and makes the rest plain."""

    path: Path
    size_bytes: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: int = 0

    def plain(self, value: Any, name: str, depth: int) -> Any:
        """The value without its tensors, as plain Python; `_TENSOR` where nothing else is left of it."""
        self.values += 1
        if depth > DEEPEST or self.values > MOST_VALUES:
            raise ModelError(f"A checkpoint is a few levels deep, but {self.path} goes on at {name[:80]!r}.")
        if isinstance(value, Tensor):
            self.tensors[name] = self._checked(value, name)
            return _TENSOR
        if isinstance(value, argparse.Namespace):
            return self.plain(vars(value), name, depth)
        if isinstance(value, Mapping):
            entries = {str(key): self.plain(v, _under(name, key), depth + 1) for key, v in value.items()}
            kept = {key: v for key, v in entries.items() if v is not _TENSOR}
            return _TENSOR if entries and not kept else kept
        if isinstance(value, (list, tuple, set)):
            members = [self.plain(v, _under(name, i), depth + 1) for i, v in enumerate(value)]
            left = [v for v in members if v is not _TENSOR]
            return _TENSOR if members and not left else left
        if isinstance(value, (np.generic, np.ndarray)):
            return value.tolist()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return str(value)

    def _checked(self, tensor: Tensor, name: str) -> Tensor:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ModelError(f"A checkpoint holds plain tensors, but {name} of {self.path} is not one.")
        # One stored number can be spread over any shape by strides of 0.
        if tensor.numel() * tensor.element_size() > self.size_bytes * MOST_GROWTH:
            raise ModelError(
                f"A tensor is not larger than its file, but {name} of {self.path} "
                f"({self.size_bytes:,} bytes) has shape {tuple(tensor.shape)}."
            )
        return tensor.detach()

    def check_storages(self) -> None:
        """Before any value is looked at: older torch lets a file claim more memory than it brings."""
        storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in self.tensors.values())}
        claimed = sum(storages.values())
        if claimed > self.size_bytes * MOST_GROWTH:
            raise _damaged(self.path, f"it has {self.size_bytes:,} bytes and claims {claimed:,}")


def _under(name: str, key: object) -> str:
    return f"{name}{SEPARATOR}{key}" if name else str(key)


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers put before every name."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in weights):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in weights.items()})
    return weights


def _shape(tensor: Tensor | None) -> str | None:
    return None if tensor is None else str(tuple(tensor.shape))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _damaged(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"A checkpoint must be a whole file of weights, but {path} can't be read ({reason}). Fetch it again."
    )
