"""TIFF files: the tags of the first page, checked, and the file with only those.

A page's tags say where its pieces lie and how they are compressed, and a hostile file can have them
lie on each other, or have as many as it likes. So the tags are read here, those that decoding needs
are written behind the file, and the decoder sees no others.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from predictors.errors import InvalidRequest
from predictors.protocol.images.kinds import CleanFile

MAX_PIECES = 2**16  # strips or tiles; one row each is the finest that is common
MAX_TAGS = 2**14  # of all pages together
MAX_PAGES = 1000  # that are counted
MAX_TABLES = 2**16  # bytes of JPEG tables
MAX_SAMPLES = 6  # per pixel
LEAST_TILE = 2**20  # pixels that a tile may have in a picture of any size

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIPS, SAMPLES, ROWS, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 322, 323, 324, 325
JPEG_TABLES, SUBFILE, ORIENTATION, DNG_VERSION, SAMPLE_FORMAT = 347, 254, 274, 50706, 339

_COUNTS = {  # tags that decoding needs, and how many values of each are read at most
    WIDTH: 1, HEIGHT: 1, BITS: MAX_SAMPLES, COMPRESSION: 1, PHOTOMETRIC: 1, FILL_ORDER: 1,
    STRIPS: MAX_PIECES, SAMPLES: 1, ROWS: 1, STRIP_BYTES: MAX_PIECES, PLANAR: 1,
    292: 1, 293: 1,  # options of CCITT compression
    317: 1,  # predictor
    320: 3 * 256,  # colours of a palette
    TILE_WIDTH: 1, TILE_HEIGHT: 1, TILES: MAX_PIECES, TILE_BYTES: MAX_PIECES,
    338: MAX_SAMPLES,  # kinds of further samples, such as alpha
    SAMPLE_FORMAT: MAX_SAMPLES, JPEG_TABLES: MAX_TABLES,
    529: 3, 530: 2, 531: 1, 532: 6,  # of YCbCr
}  # fmt: skip
_READ_ONLY = {SUBFILE: 1, ORIENTATION: 1, DNG_VERSION: 1}

_BYTE, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 3, 4, 5, 7
_TYPES = {_BYTE: "B", _SHORT: "H", _LONG: "I", _RATIONAL: "I", _UNDEFINED: "B", 13: "I", 16: "Q"}
_RAW = 1
_COMPRESSIONS = {_RAW, 2, 3, 4, 5, 7, 8, 32773, 32946}  # CCITT, LZW, JPEG, Deflate, PackBits
_COMPRESSION_NAMES = {
    6: "old-style JPEG", 34661: "JBIG", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA",
    50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
_BILEVEL_BITS, _DEPTHS = 1, {1, 2, 4, 8, 16}
_PLANES = {1, 3, 4}
_YCBCR = 6
_MOST = 2**32 - 1  # that a tag can say
_PHOTOMETRICS = {0, 1, 2, 3, 5, 6}  # gray both ways, RGB, palette, CMYK, YCbCr
_REDUCED, _MASK = 1, 4  # bits of the kind of page


@dataclass(frozen=True)
class _Layout:
    """Byte order and word size. `directory` is the position of the first page's tags."""

    order: str
    is_big: bool
    directory: int


@dataclass
class _Page:
    """The tags of a page that are read, and the position of the next page, 0 for none."""

    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
    types: dict[int, int] = field(default_factory=dict)
    num_tags: int = 0
    next: int = 0

    def first(self, tag: int, default: int = 0) -> int:
        return self.tags.get(tag, (default,))[0]


def tiff_size(raw: bytes) -> tuple[int, int] | None:
    """The size of the first page; None where its tags can't be read."""
    try:
        layout = _layout(raw)
        page = _read(raw, layout, layout.directory, {WIDTH: 1, HEIGHT: 1})
    except InvalidRequest:
        return None
    return page.first(WIDTH), page.first(HEIGHT)


def exif_orientation(raw: bytes) -> int | None:
    """The orientation in EXIF data, which are a TIFF file's tags; None where they can't be read."""
    if raw[:2] not in (b"II", b"MM"):
        return None
    try:
        layout = _layout(raw)
        found = _read(raw, layout, layout.directory, {ORIENTATION: 1}).first(ORIENTATION)
    except InvalidRequest:
        return None
    return found or None


def clean_tiff(raw: bytes) -> CleanFile:
    """The first page's data with tags that were checked. Raises `InvalidRequest` for several pages,
    raw photos, tags that do not fit the picture, and compressions and samples that are not read."""
    layout = _layout(raw)
    page = _read(raw, layout, layout.directory, _COUNTS | _READ_ONLY)
    _check_pages(raw, layout, page)
    _check_kind(page)
    _check_pieces(page, len(raw))
    orientation = page.first(ORIENTATION, 1)
    for tag in _READ_ONLY:
        page.tags.pop(tag, None)
    return CleanFile(_written(raw, layout, page), orientation)


# -- reading ---------------------------------------------------------------------------------------
def _layout(raw: bytes) -> _Layout:
    order = "<" if raw[:2] == b"II" else ">"
    is_big = 43 in raw[2:4]
    (directory,) = _unpack(order + ("Q" if is_big else "I"), raw, 8 if is_big else 4)
    return _Layout(order, is_big, directory)


def _read(raw: bytes, layout: _Layout, position: int, counts: Mapping[int, int]) -> _Page:
    """The tags in `counts` of the page whose directory is at `position`."""
    order, is_big = layout.order, layout.is_big
    head = order + ("Q" if is_big else "H")
    entry = struct.Struct(order + ("HHQ8s" if is_big else "HHI4s"))
    (num_tags,) = _unpack(head, raw, position)
    if num_tags > MAX_TAGS:
        raise InvalidRequest(f"is a TIFF picture of more than {MAX_TAGS} tags")
    page, at = _Page(num_tags=num_tags), position + struct.calcsize(head)
    end = at + num_tags * entry.size
    (page.next,) = _unpack(order + ("Q" if is_big else "I"), raw, end)
    for tag, kind, count, value in entry.iter_unpack(raw[at:end]):
        if tag in counts and tag not in page.tags and kind in _TYPES:
            page.tags[tag] = _values(raw, layout, (kind, count, value), counts[tag])
            page.types[tag] = kind
    return page


def _values(
    raw: bytes, layout: _Layout, entry: tuple[int, int, bytes], at_most: int
) -> tuple[int, ...]:
    kind, count, value = entry
    count = min(count, at_most) * (2 if kind == _RATIONAL else 1)
    values = f"{layout.order}{count}{_TYPES[kind]}"
    if not count:
        raise _damaged()
    if struct.calcsize(values) <= len(value):
        found = struct.unpack_from(values, value)
    else:
        (offset,) = struct.unpack(layout.order + ("Q" if layout.is_big else "I"), value)
        found = _unpack(values, raw, offset)
    if max(found) >= 2**32:  # a BigTIFF's, which can't be written to the page that is decoded
        raise _damaged()
    return found


def _unpack(form: str, raw: bytes, position: int) -> tuple[int, ...]:
    """`struct.unpack_from` at any position, as a file may say. Raises `InvalidRequest`."""
    if position + struct.calcsize(form) > len(raw):
        raise _damaged()
    return struct.unpack_from(form, raw, position)


def _damaged() -> InvalidRequest:
    return InvalidRequest("is a TIFF picture whose header is damaged")


def _check_pages(raw: bytes, layout: _Layout, first: _Page) -> None:
    num_pages, num_tags, seen = 1, first.num_tags, {layout.directory}
    following = first.next
    while following and following not in seen and len(seen) < MAX_PAGES:
        seen.add(following)
        try:
            page = _read(raw, layout, following, {SUBFILE: 1})
        except InvalidRequest:  # programs leave rubbish behind the last page
            break
        num_tags += page.num_tags
        if num_tags > MAX_TAGS:
            raise InvalidRequest(f"is a TIFF picture of more than {MAX_TAGS} tags")
        num_pages += not page.first(SUBFILE) & (_REDUCED | _MASK)
        following = page.next
    if num_pages > 1:
        raise InvalidRequest(f"is a TIFF of {num_pages} pages; send a single picture")


# -- checks ----------------------------------------------------------------------------------------
def _check_kind(page: _Page) -> None:
    """Raise for what is not read, before it is decoded to something else."""
    if DNG_VERSION in page.tags or page.first(SUBFILE) & _REDUCED:
        raise InvalidRequest("is a camera's raw file; send it as JPEG or PNG")
    compression = page.first(COMPRESSION, _RAW)
    if compression not in _COMPRESSIONS:
        name = _COMPRESSION_NAMES.get(compression, f"method {compression}")
        raise InvalidRequest(
            f"is a TIFF picture compressed by {name}; taken are LZW, Deflate, PackBits, JPEG, "
            "CCITT and none"
        )
    bits = set(page.tags.get(BITS, (_BILEVEL_BITS,)))
    formats = set(page.tags.get(SAMPLE_FORMAT, (1,)))
    photometric = page.first(PHOTOMETRIC)
    if len(bits) > 1 or not bits <= _DEPTHS or not formats <= {1, 4}:
        problem = f"samples of {max(bits)} bits" if formats <= {1, 4} else "signed or real samples"
        raise InvalidRequest(
            f"is a TIFF picture with {problem}; taken are whole numbers of 1, 2, 4, 8 or 16 bits"
        )
    is_inverted_gray = photometric == 0 and bits == {16}
    if photometric not in _PHOTOMETRICS or is_inverted_gray:
        raise InvalidRequest(
            f"is a TIFF picture of colour space {photometric}; taken are gray, RGB, palettes, CMYK "
            "and YCbCr"
        )


def _check_pieces(page: _Page, file_bytes: int) -> None:
    """Raise unless the strips or tiles are as many as the size needs, and lie beside each other."""
    width, height = page.first(WIDTH), page.first(HEIGHT)
    samples = page.first(SAMPLES, 1)
    if not (width and height and 1 <= samples <= MAX_SAMPLES):
        raise _damaged()
    is_planar = page.first(PLANAR, 1) == 2
    if is_planar and samples not in _PLANES:  # Pillow takes others for pixels side by side
        raise InvalidRequest(
            f"is a TIFF picture of {samples} samples a pixel in separate planes; taken are 1, 3 "
            "and 4"
        )
    if TILE_WIDTH in page.tags:
        piece = page.first(TILE_WIDTH), page.first(TILE_HEIGHT)
        offsets_tag, bytes_tag = TILES, TILE_BYTES
    else:
        piece = width, min(page.first(ROWS, height), height)
        offsets_tag, bytes_tag = STRIPS, STRIP_BYTES
    if not all(piece) or piece[0] * piece[1] > max(4 * width * height, LEAST_TILE):
        raise InvalidRequest("is a TIFF picture whose tiles do not fit its size")
    count = -(-width // piece[0]) * -(-height // piece[1])
    count *= samples if is_planar else 1
    if count > MAX_PIECES:
        raise InvalidRequest(f"is a TIFF picture in more than {MAX_PIECES} strips or tiles")
    if len(page.tags.get(offsets_tag, ())) < count:
        raise _damaged()
    page.tags[offsets_tag] = page.tags[offsets_tag][:count]
    sizes = page.tags.get(bytes_tag, (0,))[:count]
    if page.first(COMPRESSION, _RAW) == _RAW and page.first(PHOTOMETRIC) != _YCBCR:
        sizes = _raw_sizes(page, piece, count, samples_each=1 if is_planar else samples)
    page.tags[bytes_tag] = sizes
    if page.first(COMPRESSION, _RAW) == _RAW:
        return
    if len(sizes) < count or not all(sizes) or sum(sizes) > file_bytes:
        raise InvalidRequest("is a TIFF picture whose strips or tiles do not fit its file")


def _raw_sizes(
    page: _Page, piece: tuple[int, int], count: int, samples_each: int
) -> tuple[int, ...]:
    """The bytes of each piece without compression, whatever the file says: libtiff, which decodes,
    goes by the tag, and it may be missing."""
    width, rows = piece
    row_bytes = (width * samples_each * page.first(BITS, _BILEVEL_BITS) + 7) // 8
    row_bytes = min(row_bytes, _MOST // rows)  # of a size that is refused once the file is open
    if TILE_WIDTH in page.tags:
        return (rows * row_bytes,) * count
    height = page.first(HEIGHT)
    per_plane = -(-height // rows)
    return tuple(row_bytes * min(rows, height - rows * (i % per_plane)) for i in range(count))


# -- writing ---------------------------------------------------------------------------------------
def _written(raw: bytes, layout: _Layout, page: _Page) -> bytes:
    """`raw` with a directory of `page` alone behind it, which the header names as the only one."""
    order, start = layout.order, len(raw) + len(raw) % 2
    tags = sorted(page.tags.items())
    entries, tail = [], b""
    tail_start = start + 2 + 12 * len(tags) + 4
    for tag, values in tags:
        kind = page.types.get(tag, _LONG)
        if kind not in (_RATIONAL, _UNDEFINED):
            kind = _SHORT if max(values) < 2**16 else _LONG
        count = len(values) // 2 if kind == _RATIONAL else len(values)
        packed = struct.pack(f"{order}{len(values)}{_TYPES[kind]}", *values)
        if len(packed) > 4:
            here = struct.pack(order + "I", tail_start + len(tail))
            tail += packed + bytes(len(packed) % 2)
            packed = here
        entries.append(struct.pack(order + "HHI4s", tag, kind, count, packed))
    head = raw[:2] + struct.pack(order + "HI", 42, start)
    directory = [struct.pack(order + "H", len(tags)), *entries, bytes(4)]
    return b"".join([head, raw[8:], bytes(len(raw) % 2), *directory, tail])
