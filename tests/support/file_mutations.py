"""Damage to weight files, by a seeded generator: to their tensors, to their bytes, to a safetensors header, to a zip
archive, to a pickle.

A file is given as a `Bag`: its tensors, how they are written, and texts beside them. `mutated` returns other bytes for
it.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch

from .published_layouts import nested

State = dict[str, torch.Tensor]
SMALL_RECORDS = ("byteorder", "version", ".format_version", ".storage_alignment")  # in the zip files of torch.save
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}
HUGE = 1 << 36  # bytes or elements that no file here has
CANARY = "troupe-fuzz-canary"


@dataclass(frozen=True)
class Bag:
    """What a file holds. container: 'safetensors', 'zip' (torch since 1.6) or 'old' (before); tree: written as a dict
    of dicts.
    """

    state: State
    container: str = "safetensors"
    metadata: dict[str, str] = field(default_factory=dict)
    tree: bool = False

    def bytes(self, state: State | None = None) -> bytes:
        """The file, with other tensors where some are given."""
        return self._whole if state is None else self._made(state)

    @cached_property
    def _whole(self) -> bytes:
        return self._made(self.state)

    @cached_property
    def members(self) -> dict[str, bytes]:
        """The members of its archive."""
        return archive(self._whole)

    def _made(self, state: State) -> bytes:
        if self.container == "safetensors":
            return safetensors_file(*laid_out({str(name): tensor for name, tensor in state.items()}), self.metadata)
        buffer = io.BytesIO()
        torch.save(
            nested(state) if self.tree and all(isinstance(name, str) for name in state) else state,
            buffer,
            _use_new_zipfile_serialization=self.container == "zip",
        )
        return buffer.getvalue()


def laid_out(state: State) -> tuple[dict[str, dict], bytes]:
    """A safetensors header without metadata, and the bytes it describes."""
    header, parts, at = {}, [], 0
    for name, tensor in state.items():
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + len(raw)]}
        parts.append(raw)
        at += len(raw)
    return header, b"".join(parts)


def safetensors_file(header: dict, body: bytes, metadata: dict | None = None, length: int | None = None) -> bytes:
    text = json.dumps(({"__metadata__": metadata} if metadata else {}) | header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


# ---- tensors ---------------------------------------------------------------------------------------------------------


def one(rng: random.Random, state: State) -> str:
    return rng.choice(list(state))


def bent(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor in another shape."""
    kinds: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda t: t.mT.contiguous() if t.ndim > 1 else t.unsqueeze(0),
        lambda t: t.flatten(),
        lambda t: t.unsqueeze(0),
        lambda t: t.unsqueeze(-1),
        lambda t: t[:0] if t.ndim else t.new_zeros(0),
        lambda t: torch.cat((t, t[:1])) if t.ndim else t.reshape(1),
        lambda t: t[:-1] if t.ndim else t.reshape(1, 1),
        lambda t: t.flatten()[:1].sum(),
        lambda t: t[..., :-1] if t.ndim else t.reshape(1),
        lambda t: torch.cat((t, t)) if t.ndim else t.expand(3),
        lambda t: t.new_zeros((0,) * 3),
        lambda t: t.reshape((1,) * 12 + tuple(t.shape)),
    ]
    return rng.choice(kinds)(tensor).contiguous()


def renamed(rng: random.Random, name: str) -> str:
    """Another name: a slip, another number, something that reads like a number, or nonsense."""
    head, _, tail = name.partition(".")
    digits = [part for part in name.split(".") if part.isdecimal()]
    kinds = [
        "x" + name,
        name + "x",
        name[:-1],
        name.upper(),
        f"model.{name}",
        f"module.{name}",
        tail or "y",
        head,
        "",
        ".",
        "." * 500,
        "a" * 100_000,
        name.replace(".", "_"),
        f"{name}\n",
        "\u202e" + name,
        name.replace(".", "..", 1),
        "__metadata__x",
        f"ip_adapter.{name}",
        f"unet.{name}",
        f"{head}.999999999.{tail}",
        f"{head}.layers.999999999.0.weight",
    ]
    for number in (10**9, 10**18, int("9" * 4000), 141, -1):
        kinds += [name.replace(f".{digit}.", f".{number}.", 1) for digit in digits]
        kinds += [f"{number}.{name.split('.', 1)[1]}"] if name[:1].isdecimal() and "." in name else []
    kinds += [
        f"{head}.{odd}.{tail.partition('.')[2]}" for odd in ("\u0663", "\u00b2", "9" * 5000, "0x1", "1e3", "01")
    ] + [f"{'9' * 5000}.to_q_lora.down.weight", "9999.x", "-1.x"]
    kinds += [
        f"{start}{'9' * 4500}.attentions.0.transformer_blocks.0.fuser.linear.weight"
        for start in ("down_blocks.", "unet.up_blocks.")
    ]
    kinds += [
        f"input_blocks.{'9' * 4500}.1.transformer_blocks.0.fuser.linear.weight",
        f"{head}.transformer.resblocks.{'9' * 4500}.ln_1.weight",
    ]
    return rng.choice(kinds)


def shuffled(rng: random.Random, state: State) -> State:
    names = list(state)
    rng.shuffle(names)
    return {name: state[name] for name in names}


def exchanged(rng: random.Random, state: State) -> State:
    values = list(state.values())
    rng.shuffle(values)
    return dict(zip(state, values, strict=True))


def _rename(rng: random.Random, state: State) -> State:
    chosen = {name: renamed(rng, name) for name in rng.sample(list(state), rng.choice((1, 1, min(3, len(state)))))}
    return {chosen.get(name, name): tensor for name, tensor in state.items()}


def _drop(rng: random.Random, state: State) -> State:
    gone = set(rng.sample(list(state), rng.choice((1, 1, min(4, len(state) - 1), len(state) // 2))))
    return {name: tensor for name, tensor in state.items() if name not in gone}


def _drop_section(rng: random.Random, state: State) -> State:
    name = one(rng, state)
    prefix = ".".join(name.split(".")[: rng.randint(1, max(1, name.count(".")))])
    return {other: tensor for other, tensor in state.items() if not other.startswith(prefix)}


def _double(rng: random.Random, state: State) -> State:
    name = one(rng, state)
    return state | {renamed(rng, name): state[name]}


def _cast(rng: random.Random, state: State) -> State:
    dtype, names = rng.choice(list(NAMES)), set(rng.choice(([one(rng, state)], list(state))))
    return {name: tensor.to(dtype) if name in names else tensor for name, tensor in state.items()}


def _bend(rng: random.Random, state: State) -> State:
    names = {one(rng, state) for _ in range(rng.choice((1, 1, 1, 5)))}
    return {name: bent(rng, tensor) if name in names else tensor for name, tensor in state.items()}


def _poison(rng: random.Random, state: State) -> State:
    value, names = (
        rng.choice((float("nan"), float("inf"), float("-inf"))),
        set(rng.choice(([one(rng, state)], [one(rng, state)], list(state)))),
    )
    found = {name: tensor.clone() if name in names else tensor for name, tensor in state.items()}
    for name in names:
        if not found[name].is_floating_point() or not found[name].numel():
            continue
        if rng.random() < 0.5:
            found[name].fill_(value)
        else:
            found[name].view(-1)[rng.randrange(found[name].numel())] = value
    return found


def _foreign(rng: random.Random, state: State) -> State:
    others = [
        "image_proj.latents",
        "ip_adapter.1.to_k_ip.weight",
        "position_net.null_positive_feature",
        "mm_fuse_one.fc1.weight",
        "postfuse_module.mlp1.fc1.weight",
        "mapping.layers.0.weight",
        "0.to_k_lora_image.down.weight",
        "1.to_k_lora_image.down.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight",
        "fc1.weight",
        "null_image_feature",
        "conv_in.weight",
        "unet.x.fuser.linear.weight",
        "ln_post.weight",
        "visual.proj",
        "project.weight",
        "lora_unet.alpha",
        "double_blocks.0.x",
        "image_encoder.visual.proj",
        "image_encoder.visual.transformer.resblocks.0.attn.in_proj_weight",
        "image_encoder.visual_projection.weight",
        "image_proj.layers.5.0.to_q.weight",
        "encoder.layers.7.mlp.fc1.weight",
    ]
    return state | {
        name: torch.randn(rng.choice(((), (0,), (2,), (3, 3), (1, 2, 2), (4, 4, 3, 3), (6, 512))))
        for name in rng.sample(others, rng.choice((1, 1, 2)))
    }


TENSORS: dict[str, Callable[[random.Random, State], State]] = {
    "shuffled": shuffled,
    "exchanged": exchanged,
    "renamed": _rename,
    "dropped": _drop,
    "without a section": _drop_section,
    "doubled": _double,
    "cast": _cast,
    "bent": _bend,
    "poisoned": _poison,
    "foreign": _foreign,
    "one tensor": lambda rng, state: {(name := one(rng, state)): state[name]},
    "none": lambda rng, state: {},
    "the same everywhere": lambda rng, state: dict.fromkeys(state, state[one(rng, state)]),
    "a prefix": lambda rng, state: {rng.choice(("model.", "unet.", "a.b.c.")) + n: t for n, t in state.items()},
}


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _flips(start: int, stop: int | None, count: int) -> Callable[[random.Random, bytes], bytes]:
    def flip(rng: random.Random, data: bytes) -> bytes:
        changed, places = bytearray(data), range(len(data))[start:stop] or range(len(data))
        for _ in range(rng.randint(1, count)):
            changed[rng.choice(places)] ^= 1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(1, 256)
        return bytes(changed)

    return flip


def _without(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return rng.choice(
        (data[:a] + data[b:], data[:a] + bytes(b - a) + data[b:], data[:b] + data[a:], data[b:] + data[:b])
    )


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut": lambda rng, data: data[: rng.randrange(len(data))],
    "cut early": lambda rng, data: data[: rng.randrange(600)],
    "cut late": lambda rng, data: data[: -rng.randint(1, 600)],
    "headless": lambda rng, data: data[rng.randint(1, 64) :],
    "a flipped byte": _flips(0, None, 1),
    "flipped bytes": _flips(0, None, 64),
    "flipped head": _flips(0, 400, 6),
    "flipped start": _flips(0, 16, 2),
    "flipped tail": _flips(-400, None, 6),
    "a hole": _without,
    "more behind": lambda rng, data: data + rng.choice((b"\0", b"junk", data, bytes(5000))),
    "more before": lambda rng, data: rng.choice((b"\0", b"PK\x03\x04", b"\x80\x02", data[:99])) + data,
}


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _header(change: Callable[[random.Random, dict], object]) -> Callable[[random.Random, Bag], bytes]:
    def write(rng: random.Random, bag: Bag) -> bytes:
        header, body = laid_out(bag.state)
        found = change(rng, header)
        return safetensors_file(found if isinstance(found, dict) else header, body, bag.metadata)

    return write


def _entry(**fields: list) -> Callable[[random.Random, Bag], bytes]:
    """One tensor's entry with one of its fields replaced by one of these."""

    def change(rng: random.Random, header: dict) -> None:
        entry, name = header[rng.choice(list(header))], rng.choice(list(fields))
        entry[name] = rng.choice(fields[name])

    return _header(change)


def _shift(rng: random.Random, header: dict) -> None:
    for name in rng.sample(list(header), rng.choice((1, len(header)))):
        by = rng.choice((-4, 2, 4, 1000, HUGE))
        header[name]["data_offsets"] = [max(0, at + by) for at in header[name]["data_offsets"]]


def _overlap(rng: random.Random, header: dict) -> None:
    first, second = (header[rng.choice(list(header))] for _ in range(2))
    first.update(second)


def _metadata(rng: random.Random, bag: Bag) -> bytes:
    keys = [
        "format",
        "version",
        "base",
        "image_encoder",
        "image_feature",
        "normalize",
        "activation",
        "tokens",
        "slots",
        "x",
    ]
    values = [
        "",
        "0",
        "1",
        "2",
        "3",
        "-1",
        "9" * 5000,
        "99999999999",
        "nan",
        "1.5",
        "\u0663",
        "\u00b2",
        "true",
        "pooled",
        "projected",
        "relu",
        "mm_diff",
        "umm_diffusion",
        "subject_diffusion",
        "\n'",
        "x" * 10_000,
        5,
        None,
        [],
        {"a": 1},
    ]
    header, body = laid_out(bag.state)
    wild = rng.choice((None, None, None, "text", [1], 7, {"a": {"b": 1}}))
    return safetensors_file(
        header,
        body,
        bag.metadata | {rng.choice(keys): rng.choice(values) for _ in range(rng.randint(1, 3))}
        if wild is None
        else wild,
    )


def _length(rng: random.Random, bag: Bag) -> bytes:
    header, body = laid_out(bag.state)
    size = len(json.dumps(header))
    return safetensors_file(
        header,
        body,
        length=rng.choice(
            (
                0,
                1,
                2,
                size - 1,
                size + 1,
                size + 8,
                HUGE,
                2**63,
                2**64 - 1,
                100_000_000,
                size + len(body),
                size + len(body) - 1,
            )
        ),
    )


def _raw_header(rng: random.Random, bag: Bag) -> bytes:
    name = one(rng, bag.state)
    texts = [
        "{" * 50_000,
        '{"a":' * 50_000 + "1" + "}" * 50_000,
        "{}",
        "{]",
        '{"a": NaN}',
        '{"a": 1e999}',
        "{" + " " * 5000 + "}",
        '{"\\ud800": 1}',
        '{"a": ' + "[" * 99_999,
        '{"' + name + '": null}',
        json.dumps({name: {"dtype": "F32", "shape": [HUGE, HUGE], "data_offsets": [0, 4]}}),
        json.dumps({name: {"dtype": "F32", "shape": [0, HUGE], "data_offsets": [0, 0]}}),
        '{"__metadata__": {"a": "b"}}',
        '{"x": ' + "9" * 5000 + "}",
    ]
    text = rng.choice(texts).encode()
    return struct.pack("<Q", len(text)) + text + rng.choice((b"", bytes(64)))


HEADERS: dict[str, Callable[[random.Random, Bag], bytes]] = {
    "offsets": _header(_shift),
    "overlapping": _header(_overlap),
    "metadata": _metadata,
    "header length": _length,
    "other header": _raw_header,
    "declared shape": _entry(
        shape=[
            [HUGE],
            [HUGE, HUGE],
            [0],
            [],
            [-1],
            [2**63],
            [1.5],
            ["4"],
            None,
            "ab",
            {"a": 1},
            [[4]],
            [True],
            [1] * 3000,
            "4",
        ]
    ),
    "declared dtype": _entry(
        dtype=["F64", "F32", "F16", "I8", "F4", "F8_E8M0", "f32", "", None, 3, [], "BOOL", "C64", "U64"]
    ),
    "declared place": _entry(
        data_offsets=[
            [0, 0],
            [0, HUGE],
            [HUGE, HUGE],
            [8, 0],
            [-4, 0],
            [0],
            [],
            None,
            "ab",
            [0, 4, 8],
            [0.0, 4.0],
            [2**64 - 1, 2**64],
        ]
    ),
    "entry": _header(lambda rng, header: header.update({one(rng, header): rng.choice((None, 1, [], "x", {}))})),
}


# ---- archives --------------------------------------------------------------------------------------------------------


def archive(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


def packed(
    members: dict[str, bytes],
    method: int = zipfile.ZIP_STORED,
    more: list[tuple[str, bytes]] = (),
    deflated: frozenset[str] = frozenset(),
) -> bytes:  # type: ignore[assignment]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in [*members.items(), *more]:
            file.writestr(name, content, zipfile.ZIP_DEFLATED if name in deflated else None)
    return buffer.getvalue()


@cache
def zeros(megabytes: int) -> tuple[bytes, int]:
    """That many zeros, deflated, and their checksum."""
    deflate, found, check = zlib.compressobj(wbits=-15), [], 0
    for _ in range(megabytes):
        found.append(deflate.compress(bytes(1 << 20)))
        check = zlib.crc32(bytes(1 << 20), check)
    return b"".join(found) + deflate.flush(), check


def bomb(name: str, megabytes: int = 300) -> bytes:
    """A whole archive in which one member of zeros is a thousandth of its size."""
    data, check = zeros(megabytes)
    about = struct.pack("<5H3L2H", 20, 0, zipfile.ZIP_DEFLATED, 0, 33, check, len(data), megabytes << 20, len(name), 0)
    local = b"PK\x03\x04" + about + name.encode() + data
    central = b"PK\x01\x02" + struct.pack("<H", 20) + about + bytes(14) + name.encode()
    return local + central + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, len(central), len(local), 0)


def _zip(change: Callable[[random.Random, dict[str, bytes]], bytes | None]) -> Callable[[random.Random, Bag], bytes]:
    def write(rng: random.Random, bag: Bag) -> bytes:
        members = dict(bag.members)
        found = change(rng, members)
        return packed(members) if found is None else found

    return write


def _storage(rng: random.Random, members: dict[str, bytes]) -> str:
    return rng.choice([name for name in members if "/data/" in name])


def _patched(rng: random.Random, members: dict[str, bytes]) -> bytes:
    """Sizes, places, methods and flags of members as the directory tells them."""
    data = bytearray(packed(members))
    entries = [at for at in range(len(data) - 4) if data[at : at + 4] == b"PK\x01\x02"]
    for at in rng.sample(entries, rng.choice((1, len(entries)))):
        offset, form, values = rng.choice(
            (
                (24, "<I", (2**31, 2**32 - 2, 0, 5)),
                (20, "<I", (2**31, 2**32 - 2, 0, 5)),
                (42, "<I", (0, 7, 2**31)),
                (10, "<H", (8, 12, 14, 99)),
                (8, "<H", (1, 8, 0x800)),
                (28, "<H", (0, 3, 60_000)),
                (30, "<H", (4, 60_000)),
            )
        )
        struct.pack_into(form, data, at + offset, rng.choice(values))
    return bytes(data)


def _move(rng: random.Random, members: dict[str, bytes]) -> None:
    name = rng.choice(list(members))
    members[
        rng.choice(
            (
                name.upper(),
                "x/" + name,
                name.rpartition("/")[2],
                "../../" + CANARY,
                "/" + name,
                f"other/{name.partition('/')[2]}",
                "archive/data/999",
                name + "\0x",
            )
        )
    ] = members.pop(name)


def _blow_up(rng: random.Random, members: dict[str, bytes]) -> bytes:
    """A member that unpacks to 300 MB: the pickle, a storage, a small record, or one that nobody asks for."""
    root = next(iter(members)).partition("/")[0]
    name = rng.choice(
        (f"{root}/data.pkl", _storage(rng, members), f"{root}/version", f"{root}/byteorder", f"{root}/data/bomb")
    )
    small = {other: content for other, content in members.items() if other != name}
    before = io.BytesIO(bomb(name))
    with zipfile.ZipFile(before, "a", zipfile.ZIP_STORED) as file:
        for other, content in small.items():
            file.writestr(other, content)
    return before.getvalue()


ARCHIVES: dict[str, Callable[[random.Random, Bag], bytes]] = {
    "deflated": _zip(
        lambda rng, members: packed(members, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    ),
    "one deflated": _zip(lambda rng, members: packed(members, deflated=frozenset([rng.choice(list(members))]))),
    "a zip bomb": _zip(_blow_up),
    "directory": _zip(_patched),
    "member moved": _zip(_move),
    "member gone": _zip(lambda rng, members: members.pop(rng.choice(list(members))) and None),
    "storage cut": _zip(
        lambda rng, members: members.update(
            {(name := _storage(rng, members)): members[name][: rng.randrange(len(members[name]) + 1)]}
        )
    ),
    "storage longer": _zip(
        lambda rng, members: members.update({(name := _storage(rng, members)): members[name] + bytes(64)})
    ),
    "small records": _zip(
        lambda rng, members: members.update(
            {
                f"{next(iter(members)).partition('/')[0]}/{rng.choice(SMALL_RECORDS)}": rng.choice(
                    (b"big", b"little", b"", b"x", b"99", b"9" * 5000, b"\xff", b"-1")
                )
            }
        )
    ),
    "twice": _zip(
        lambda rng, members: packed(members, more=[(name := rng.choice(list(members)), members[name][::-1])])
    ),
    "torchscript": _zip(
        lambda rng, members: members.update({f"{next(iter(members)).partition('/')[0]}/constants.pkl": b"\x80\x02)."})
    ),
}


# ---- pickles ---------------------------------------------------------------------------------------------------------


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def value(content: object) -> bytes:
    return pickle.dumps(content, 2)[2:-1]


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def storage(
    elements: int,
    key: str = "0",
    kind: str = "FloatStorage",
    module: str = "torch",
    location: str = "cpu",
    tail: bytes = b"",
) -> bytes:
    return b"(" + value("storage") + named(module, kind) + value(key) + value(location) + value(elements) + tail + b"tQ"


def tensor(elements: int, offset: int, size: tuple, stride: tuple, **kind: str) -> bytes:
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage(elements, **kind),
        value(offset),
        value(size),
        value(stride),
        b"\x89",
        call("collections", "OrderedDict"),
    )


def doubling(times: int, leaf: bytes) -> bytes:
    """Dicts in which each holds the one before twice: 2^times leaves in a few bytes."""
    text = leaf + b"q\x01"
    for _ in range(times):
        text = text + b"0" + b"}" + b"(" + value("a") + b"h\x01" + value("b") + b"h\x01" + b"uq\x01"
    return text


def evil(old: bool) -> dict[str, bytes]:
    """Opcodes that push something no adapter has: calls of code, and of what reserves memory."""
    extra = {"tail": b"N"} if old else {}
    touch = f"import os; os.system('touch {CANARY}')"
    return {
        "os.system": call("os", "system", value(f"touch {CANARY}")),
        "posix.system": call("posix", "system", value(f"touch {CANARY}")),
        "nt": call("nt", "system", value("dir")),
        "eval": call("builtins", "eval", value(f"__import__('os').system('touch {CANARY}')")),
        "exec": call("__builtin__", "exec", value(touch)),
        "exec 3": call("builtins", "exec", value(touch)),
        "open": call("builtins", "open", value(CANARY), value("w")),
        "io.open": call("io", "open", value(CANARY), value("w")),
        "Popen": call("subprocess", "Popen", value(["touch", CANARY])),
        "check_output": call("subprocess", "check_output", value(["touch", CANARY])),
        "socket": call("socket", "create_connection", value(("127.0.0.1", 9))),
        "import": call("builtins", "__import__", value("antigravity")),
        "importlib": call("importlib", "import_module", value("antigravity")),
        "getattr": call("builtins", "getattr", named("os", "path"), value("sep")),
        "compile": call("builtins", "compile", value("1"), value("x"), value("eval")),
        "partial": call("functools", "partial", named("os", "system"), value(f"touch {CANARY}")) + b")R",
        "torch.load": call("torch", "load", value("x.bin")),
        "torch.hub": call("torch.hub", "load", value("a/b"), value("c")),
        "jit": call("torch.jit", "load", value("x")),
        "dotted": call("torch", "serialization.os.system", value(f"touch {CANARY}")),
        "runpy": call("runpy", "run_path", value(CANARY)),
        "rmtree": call("shutil", "rmtree", value("nowhere-at-all")),
        "omegaconf": call("omegaconf.dictconfig", "DictConfig", value({"a": 1})) + value({"_content": 3}) + b"b",
        "inst": b"(" + value(f"touch {CANARY}") + b"ios\nsystem\n",
        "ext": b"\x82\x01",
        "stack global": value("os") + value("system") + b"\x93" + value((f"touch {CANARY}",)) + b"R",
        "newobj": named("subprocess", "Popen") + value((["touch", CANARY],)) + b"\x81",
        "a function": named("os", "system"),
        "a class": named("torch", "FloatStorage"),
        "bytearray": call("builtins", "bytearray", value(HUGE)),
        "bytearray 2": call("__builtin__", "bytearray", value(HUGE)),
        "bytearray8": b"\x96" + struct.pack("<Q", HUGE),
        "Tensor": call("torch", "Tensor", value(2**18), value(2**18)),
        "FloatTensor": call("torch", "FloatTensor", value(2**18), value(2**18)),
        "UntypedStorage": call("torch.storage", "UntypedStorage", value(HUGE)),
        "Tensor new": named("torch", "Tensor") + value((2**18, 2**18)) + b"\x81",
        "FloatStorage": call("torch", "FloatStorage", value(HUGE)),
        "complex": call("builtins", "complex", value("1j")),
        "Size": call("torch", "Size", value([HUGE])),
        "set": call("builtins", "set", value([1])),
        "Counter": call("collections", "Counter", value("aab")),
        "Parameter": named("torch.nn.parameter", "Parameter") + value((3,)) + b"\x81",
        "encode": call("_codecs", "encode", value("ab"), value("latin1")),
        "codec": call("_codecs", "encode", value("a" * 99), value("zip")),
        "meta": call(
            "torch._utils",
            "_rebuild_meta_tensor_no_storage",
            named("torch", "float32"),
            value((HUGE, 2)),
            value((2, 1)),
            b"\x89",
        ),
        "sparse": call("torch._utils", "_rebuild_sparse_tensor", named("torch", "sparse_coo"), value((1, 2, 3))),
        "wrapper": call("torch._utils", "_rebuild_wrapper_subclass", named("torch", "Tensor"), value(1)),
        "numpy": call("torch._utils", "_rebuild_device_tensor_from_numpy", value(1), value(2), value(3), value(4)),
        "quantised": call("torch._utils", "_rebuild_qtensor", value(1)),
        "type": call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            named("os", "system"),
            named("builtins", "print"),
            value((1,)),
            value({}),
        ),
        "nested": call("torch._utils", "_rebuild_nested_tensor", value(1)),
        "endless tensor": tensor(4, 0, (2**17, 2**17), (0, 0), **extra),
        "tensor too big": tensor(4, 0, (2**17, 2**17), (2**17, 1), **extra),
        "negative": tensor(4, -5, (2, 2), (-1, 1), **extra),
        "bad sizes": tensor(4, 0, (HUGE, -1), (1, 1), **extra),
        "no ints": tensor(4, 0, ("2", None), (1.5, {}), **extra),
        "big storage": tensor(HUGE, 0, (2, 2), (2, 1), **extra),
        "overflow": tensor(2**62, 0, (2,), (1,), **extra),
        "offset": tensor(4, 2**40, (2,), (1,), **extra),
        "no storage": call(
            "torch._utils", "_rebuild_tensor_v2", value(None), value(0), value((2,)), value((1,)), b"\x89", value({})
        ),
        "negative storage": tensor(-8, 0, (2,), (1,), **extra),
        "new storage": tensor(HUGE, 0, (2,), (1,), key="../../../etc/passwd", **extra),
        "cuda": tensor(1, 0, (1,), (1,), location="cuda:7", **extra),
        "mars": tensor(1, 0, (1,), (1,), location="mars", **extra),
        "set_": tensor(1, 0, (1,), (1,), **extra)
        + b"("
        + storage(1, **extra)
        + value(0)
        + value((2**17, 2**17))
        + value((2**17, 1))
        + b"tb",
        "module": b"(" + value("module") + named("os", "system") + value("a") + value("b") + b"tQ",
        "persistent": value((1, 2, 3)) + b"Q",
        "persistent text": b"Pabc\n",
        "deep list": b"]" * 200_000 + b"a" * 199_999,
        "deep dicts": b"}" + (value("a") + b"}") * 50_000 + b"s" * 50_000,
        "deep tuple": b")" + b"\x85" * 200_000,
        "doubling": doubling(40, value({"x": 1})),
        "doubling tensors": doubling(30, tensor(1, 0, (1,), (1,), **extra)),
        "knot": b"}q\x07" + value("me") + b"h\x07s",
        "memo": b"Nr\xff\xff\xff\x7f",
        "long text": b"X\xff\xff\xff\x7fab",
        "long text 8": b"\x8d" + struct.pack("<Q", HUGE) + b"ab",
        "long bytes": b"\x8e" + struct.pack("<Q", HUGE) + b"ab",
        "frame": b"\x95" + struct.pack("<Q", HUGE),
        "long number": b"\x8b\xff\xff\xff\x7fab",
        "digits": b"L" + b"9" * 20_000 + b"L\n",
        "pops": b"0000",
        "marks": b"(" * 50_000,
        "get": b"h\xfa",
        "no opcode": b"\xfe",
        "number": value(5),
        "text": value("text"),
        "None": b"N",
        "dict": value({"a": {"b": [1, 2]}}),
    }


def tops() -> list[object]:
    return [
        None,
        5,
        "text",
        b"bytes",
        [],
        (),
        {},
        [torch.zeros(2)],
        torch.zeros(2, 2),
        {1: torch.zeros(2)},
        {None: torch.zeros(2)},
        {(1, 2): {b"a": torch.zeros(1)}},
        {"a": [torch.zeros(2)]},
        {True: {0.5: torch.ones(1)}},
        torch.zeros(()),
        {"": torch.ones(2)},
        {"a": {"": {"": torch.ones(2)}}},
        torch.nn.Linear(2, 2),
        torch.nn.Parameter(torch.ones(2)),
        {"a": torch.sparse_coo_tensor([[0], [0]], [1.0], (2, 2))},
        {"a": torch.zeros(2, device="meta")},
    ]


def in_place(bag: Bag, text: Callable[[bytes], bytes]) -> bytes:
    """The file with its main pickle changed."""
    data = bag.bytes()
    if bag.container == "zip":
        members = bag.members
        name = next(name for name in members if name.endswith("/data.pkl"))
        return packed(members | {name: text(members[name])})
    stream, starts = io.BytesIO(data), []
    for _ in range(5):
        starts.append(stream.tell())
        _skip(stream)
    return data[: starts[3]] + text(data[starts[3] : starts[4]]) + data[starts[4] :]


def _skip(stream: io.BytesIO) -> None:
    """To the end of a pickle, of which nothing is built."""
    import pickletools

    for _ in pickletools.genops(stream):
        pass


def _with_evil(rng: random.Random, bag: Bag) -> bytes:
    kinds = evil(bag.container == "old")
    return with_code(bag, kinds[rng.choice(list(kinds))], rng.randrange(3))


def with_code(bag: Bag, code: bytes, way: int) -> bytes:
    """The file with these opcodes run at the end of its pickle: 0: their result is an item of the dict; 1: thrown away;
    2: alone.
    """
    ends = (
        lambda text: text[:-1] + value("evil") + code + b"s.",
        lambda text: text[:-1] + code + b"0.",
        lambda text: text[:2] + code + b".",
    )
    return in_place(bag, ends[way])


def _opcodes(rng: random.Random, bag: Bag) -> bytes:
    """The pickle with some bytes exchanged for opcodes."""
    codes = b"()]}.0123abcdeghijlopqrstuRQPNIJKLMSTUVXBC\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x93\x94\x95\x96\x97"

    def change(text: bytes) -> bytes:
        found = bytearray(text)
        for _ in range(rng.randint(1, 8)):
            found[rng.randrange(2, len(found))] = rng.choice(codes)
        return bytes(found)

    return in_place(bag, change)


def _other_top(rng: random.Random, bag: Bag) -> bytes:
    buffer = io.BytesIO()
    torch.save(rng.choice(tops()), buffer, _use_new_zipfile_serialization=bag.container == "zip")
    return buffer.getvalue()


def _odd_keys(rng: random.Random, bag: Bag) -> bytes:
    name = one(rng, bag.state)
    buffer = io.BytesIO()
    state = {
        (rng.choice((3, None, (1, 2), b"bytes", 2.5, True, 10**4500)) if other == name else other): t
        for other, t in bag.state.items()
    }
    torch.save(state, buffer, _use_new_zipfile_serialization=bag.container == "zip")
    return buffer.getvalue()


def _views(rng: random.Random, bag: Bag) -> bytes:
    """Tensors that are views of one storage, some of them larger than it."""
    name = one(rng, bag.state)
    whole = bag.state[name]
    odd = rng.choice(
        (
            lambda t: t.expand(2, *t.shape),
            lambda t: torch.as_strided(t, (2**16, 2**16), (0, 0)),
            lambda t: t.flatten()[:1].expand(t.shape or (1,)),
            lambda t: t.mT if t.ndim > 1 else t[::2] if t.ndim else t.expand(2),
        )
    )
    return bag.bytes(bag.state | {name: odd(whole)} if rng.random() < 0.7 else dict.fromkeys(bag.state, odd(whole)))


def _raw(rng: random.Random, bag: Bag) -> bytes:
    kinds = list(evil(True).values())
    return b"\x80\x02" + rng.choice(kinds) + b"."


def _tar(rng: random.Random, bag: Bag) -> bytes:
    """torch's first format, a tar archive, which newer versions refuse and older ones unpacked."""
    import tarfile

    buffer = io.BytesIO()
    code = b"\x80\x02" + rng.choice(list(evil(True).values())) + b"."
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("storages", "tensors", "pickle", "../" + CANARY):
            info = tarfile.TarInfo(name)
            info.size = len(code)
            tar.addfile(info, io.BytesIO(code))
    return buffer.getvalue()


PICKLES: dict[str, Callable[[random.Random, Bag], bytes]] = {
    "evil": _with_evil,
    "more evil": _with_evil,
    "yet more evil": _with_evil,
    "opcodes": _opcodes,
    "another top": _other_top,
    "odd keys": _odd_keys,
    "views": _views,
    "a raw pickle": _raw,
    "a tar": _tar,
}


def classes(container: str) -> list[str]:
    """Names of all mutations for files of that kind."""
    own = {"safetensors": [*HEADERS], "zip": [*ARCHIVES, *PICKLES], "old": [*PICKLES]}[container]
    return [*TENSORS, *BYTES, *own]


def mutated(bag: Bag, kind: str, seed: str) -> bytes:
    """The file after one mutation, always the same for a seed."""
    rng = random.Random(seed)
    if kind in TENSORS:
        return bag.bytes(TENSORS[kind](rng, dict(bag.state)))
    if kind in BYTES:
        return BYTES[kind](rng, bag.bytes())
    return (HEADERS | ARCHIVES | PICKLES)[kind](rng, bag)
