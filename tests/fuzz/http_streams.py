"""Generates what a client may send on an HTTP/1 connection: one to four pipelined messages, most
of them valid but for one or two deviations, and some with bytes changed at random.

A stream depends on its `random.Random` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

METHODS = [
    b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"TRACE", b"CONNECT",
    b"get", b"M-SEARCH", b"GE_T", b"!", b"PRI", b"G(T", b"", b"POST\t", b"\x00GET", b"P\xc3\x96ST",
]  # fmt: skip
TARGETS = [
    b"/", b"/a", b"/a?b=c", b"/a/../b", b"/a%20b", b"/a%2e%2e/b", b"/a%00b", b"//a", b"/a#b", b"*",
    b"a", b"?a", b"", b"/a b", b"/\xc3\xa9", b"/a\tb", b"/a\x00", b"/a\\b", b"/a;b", b"/a%zz",
    b"http://x/a", b"http://x", b"http://x?b", b"http://x:80/a", b"HTTP://X/a", b"http://y/a",
    b"http://u@x/a", b"http:///a", b"https://x/a", b"ftp://x/a", b"x:443", b"/a?b?c#d", b"/?",
    b"http://x/a HTTP/1.1\r\nX: y", b"http://x\r\n", b"http:/x/a", b"http://x/../a",
]  # fmt: skip
VERSIONS = [
    b"HTTP/1.0", b"HTTP/1.1", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.10", b"http/1.1",
    b"HTTP/01.1", b"HTTP/1", b"", b"HTTP/1.1 ", b"HTTP /1.1", b"HTTP/1.1\x0b", b"HTTP/1,1",
]  # fmt: skip
LINE_ENDS = [
    b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"\r\n ", b"\r\n\t", b" \r\n", b"\x0b\r\n", b"\0\r\n",
]  # fmt: skip
SPACES = [
    b"  ", b"\t", b" \t", b"\x0b", b"\x0c", b"\xa0", b"\r", b"\x85", b"\r\n ",
]  # fmt: skip
LENGTHS = [
    b"0", b"00", b"+%d", b"-%d", b"0x%d", b"%d,%d", b"%d, %d", b"%d %d", b"%d.0", b"%de0", b" %d",
    b"%d\t", b"\x0b%d", b"0%d", b"000000000000000000000%d", b"\xb2", b"\xd9\xa3", b"", b"a",
    b"%d_0", b"18446744073709551616", b"9223372036854775808", b"4294967296",
    b"99999999999999999999", b"1_0", b'"%d"', b"%d;a", b"%d\x00", b"-0", b"+0", b"0,%d",
    b"%d\r\n ", b"0\r\n %d",
]  # fmt: skip
CODINGS = [
    b"chunked", b"Chunked", b"CHUNKED", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip",
    b"identity", b"identity, chunked", b"chunked, identity", b" chunked", b"chunked ",
    b"\tchunked", b"xchunked", b"chunked;a=b", b'"chunked"', b"chunked,", b",chunked", b"",
    b"\x0bchunked", b"chunked\x0b", b"chun\r\n ked", b"chunked\x00", b"c\xc4\xb1hunked",
    b"chunke\xe4d", b"gzip", b"\r\n chunked", b"chunked\r\n ", b"deflate", b"chunkedchunked",
    b"chunk\xc4\x97d", b"x,\tchunked",
]  # fmt: skip
NAMES = [
    b"X-A", b"x_a", b"Content_Length", b"Transfer_Encoding", b"Content-Length ",
    b"Content-Length\t", b"Transfer-Encoding ", b" Content-Length", b"\tTransfer-Encoding",
    b"Content-Length\x00", b"Transfer-Encoding\x0b", b"Content-Length\xa0", b"X(A", b"X:A", b"",
    b"X A", b"\xc3\xa9", b"X\x7f", b"content-length", b"TRANSFER-ENCODING", b"Content-Encoding",
    b"X\rA", b"X\nA", b"\x00", b"Te", b"Trailer", b"Keep-Alive", b"Proxy-Connection",
    b"HTTP2-Settings", b"Upgrade", b"Content\xadLength",
]  # fmt: skip
VALUES = [
    b"b", b"", b" ", b"\t", b"a, b", b"\xc3\xa9", b"\xff", b"a\x00b", b"a\rb", b"a\nb", b"a\x7fb",
    b"a\x0bb", b"a\r\n b", b"a\r\n\tb", b"chunked", b"5", b"a\x85b", b"a" * 300, b'"a\r\n"',
    b"a\x1bb",
]  # fmt: skip
HOSTS = [
    b"x", b"X", b"x:80", b"x:", b"y", b"", b"x, y", b"x y", b"u@x", b"[::1]", b"[::1]:80", b"x/a",
    b"x\x00", b"x:999999", b"x..y", b"x%20", b"\xc3\xa9", b"x\t", b".x", b"x.", b"[x]", b"x\\y",
    b"-",
]  # fmt: skip
CONNECTIONS = [
    b"close", b"keep-alive", b"Close", b"keep-alive, close", b"close, keep-alive", b"upgrade",
    b"Upgrade, close", b"foreclose", b"close\x0b", b",close", b"close;a", b"Content-Length",
    b"Transfer-Encoding", b"Host", b"", b"x" * 40 + b", close", b"Keep-Alive", b"te, close",
    b"\xff",
]  # fmt: skip
EXPECTATIONS = [
    b"100-continue", b"100-Continue", b"100-continue, a", b"200-ok", b"", b"100-continue;a",
]  # fmt: skip
CHUNK_SIZES = [
    b"%X", b"0%x", b"0000%x", b"00000000000000%x", b"00000000000000000%x", b"+%x", b"-%x", b"0x%x",
    b" %x", b"%x ", b"%x\t", b"\t%x", b"%x\x0b", b"%xg", b"%x_0", b"%x,", b"1%015x", b"f%015x",
    b"10000000000000000%x", b"ffffffffffffffff", b"7fffffffffffffff", b"8000000000000000", b"",
    b"%x.0", b"%x\x00", b"%x\r", b"%x\n", b"\r\n%x", b"%x;", b"%x%x", b"\xb2", b"%xh", b"#%x",
    b"100000000%x", b"1000000000000%x", b"-0", b"+0", b"%x\x85", b"%x\xa0",
]  # fmt: skip
EXTENSIONS = [
    b";a", b";a=b", b';a="b"', b';a="b\\"c"', b';a="b;c"', b";a=b;c=d", b"; a=b", b" ;a=b",
    b";a =b", b";a= b", b";", b";;", b";=b", b";a=", b';a="b', b';a="b\r\nc"', b";a\nb", b";a\rb",
    b";a=b\x00", b";\xc3\xa9", b';a="\xc3\xa9"', b"a=b", b",a", b";a=b c", b"\t;a", b";a=b ",
    b";a=b\t", b";" + b"a" * 200, b";a\r\r", b';a="\n"', b";a=\x7f", b";a,b", b'"', b";a\x0b",
]  # fmt: skip
CHUNK_ENDS = [
    b"\n", b"\r", b"", b"\n\r", b"\r\n\r\n", b"\r\r\n", b"  ", b" \r\n", b"\t\r\n", b"\x00\r\n",
    b"X\r\n",
]  # fmt: skip
TRAILERS = [
    b"A: b\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: y\r\n",
    b"A:\r\n", b"A : b\r\n", b"A\r\n", b" A: b\r\n", b"A: b\n", b"A: b\r", b"A: b\r\n c\r\n",
    b": b\r\n", b"\n", b"A: \x00\r\n", b"A: \xff\r\n", b"A: b\r\r\n", b"GET / HTTP/1.1\r\n",
    b"Upgrade: x\r\n", b"\t\r\n", b"Connection: close\r\n", b"A: b\rc\r\n", b"\xc3\xa9: b\r\n",
    b"0\r\n", b"\x00\r\n",
]  # fmt: skip
EMBEDDED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
SIGNS = [
    b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"\x7f", b"\x80", b"\xff",
    b"\x0b", b"\r\n\r\n", b"a", b"%", b'"', b"\\", b"\x1f", b"-", b"+", b"x", b"\r\n ",
    b"\xc2\xa0", b"1", b"f",
]  # fmt: skip


def make_stream(random: Random) -> bytes:
    """The bytes of one connection."""
    count = random.choice((1, 1, 2, 2, 2, 3, 4))
    parts = [_Message(random, twists=_twists(random)).make() for _ in range(count)]
    if random.random() < 0.05:
        parts.insert(
            random.randrange(count + 1), random.choice((b"\r\n", b"\r\n\r\n", b"\n", b"\r"))
        )
    raw = b"".join(parts)
    if random.random() < 0.12:
        raw = mutate(random, raw)
    if random.random() < 0.06:
        raw = raw[: random.randrange(len(raw) + 1)]
    return raw


def mutate(random: Random, raw: bytes) -> bytes:
    """`raw` with one to three places changed."""
    changed = bytearray(raw)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(changed) + 1)
        kind = random.randrange(5)
        if kind == 0:
            changed[at:at] = random.choice(SIGNS)
        elif kind == 1:
            del changed[at : at + random.randint(1, 3)]
        elif kind == 2:
            changed[at : at + 1] = random.choice(SIGNS)
        elif kind == 3 and changed:
            changed[at:at] = changed[at : at + random.randint(1, 30)]
        elif at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
    return bytes(changed)


def _twists(random: Random) -> int:
    return random.choices((0, 1, 2, 3), (35, 48, 13, 4))[0]


def _filled(random: Random, forms: Sequence[bytes], number: int) -> bytes:
    form = random.choice(forms)
    return form % ((number,) * form.count(b"%")) if b"%" in form else form


class _Message:
    """One message. Each twist changes one part of a valid one."""

    def __init__(self, random: Random, twists: int) -> None:
        self.random = random
        self.body = random.choice((b"", b"hello", b"a" * 20, EMBEDDED, b"\r\n\r\n", b"0\r\n\r\n"))
        self.framing = random.choice(("none", "length", "length", "chunked", "chunked"))
        self.method = (
            b"POST" if self.framing != "none" else random.choice((b"GET", b"GET", b"HEAD"))
        )
        self.target, self.version, self.space = b"/a", b"HTTP/1.1", b" "
        self.host: list[bytes] = [b"Host: x\r\n"]
        self.fields: list[bytes] = []
        self.length = b"%d" % len(self.body)
        self.coding = b"chunked"
        self.length_name, self.coding_name = b"Content-Length", b"Transfer-Encoding"
        self.line_end = b"\r\n"
        self.chunks: list[tuple[bytes, bytes, bytes, bytes]] = []
        self.last, self.trailers, self.end = b"0\r\n", b"", b"\r\n"
        if self.framing == "chunked":
            self._cut()
        kinds = [self._line, self._host, self._field, self._connection, self._value]
        if self.framing == "length":
            kinds += [self._length] * 4 + [self._both]
        elif self.framing == "chunked":
            kinds += [self._coding] * 3 + [self._chunk] * 6 + [self._trailer] * 2 + [self._both]
        for _ in range(twists):
            random.choice(kinds)()

    def _cut(self) -> None:
        rest = self.body
        while rest:
            count = self.random.randint(1, len(rest))
            self.chunks.append((b"%x" % count, b"\r\n", rest[:count], b"\r\n"))
            rest = rest[count:]

    # -- twists ----------------------------------------------------------------------------------
    def _line(self) -> None:
        random = self.random
        match random.randrange(6):
            case 0:
                self.method = random.choice(METHODS)
            case 1 | 2:
                self.target = random.choice(TARGETS)
            case 3:
                self.version = random.choice(VERSIONS)
            case 4:
                self.version = b"HTTP/1.0"
            case _:
                self.space = random.choice(SPACES)

    def _host(self) -> None:
        match self.random.randrange(4):
            case 0:
                self.host = []
            case 1:
                self.host = [b"Host: %b\r\n" % self.random.choice(HOSTS) for _ in range(2)]
            case _:
                self.host = [b"Host: %b\r\n" % self.random.choice(HOSTS)]

    def _field(self) -> None:
        name = self.random.choice(NAMES)
        value = self.random.choice((b"5", b"chunked", b"0", b"b"))
        self._add(b"%b: %b\r\n" % (name, value))

    def _value(self) -> None:
        value, end = self.random.choice(VALUES), self.random.choice((b"\r\n", *LINE_ENDS))
        self._add(b"X-A: %b%b" % (value, end))

    def _connection(self) -> None:
        random = self.random
        match random.randrange(5):
            case 0:
                self._add(b"Expect: %b\r\n" % random.choice(EXPECTATIONS))
            case 1:
                self._add(
                    b"Connection: upgrade\r\nUpgrade: %b\r\n"
                    % random.choice((b"h2c", b"websocket"))
                )
            case 2:
                for _ in range(2):
                    self._add(b"Connection: %b\r\n" % random.choice(CONNECTIONS))
            case _:
                self._add(b"Connection: %b\r\n" % random.choice(CONNECTIONS))

    def _length(self) -> None:
        random, size = self.random, len(self.body)
        match random.randrange(6):
            case 0:
                self.length = b"%d" % max(0, size + random.choice((-1, 1, -2, 2, 36, 100)))
            case 1:
                other = random.choice((self.length, b"0", b"%d" % (size + 1)))
                self._add(b"Content-Length: %b\r\n" % other)
            case 2:
                self.length_name = random.choice(NAMES[3:13])
            case _:
                self.length = _filled(random, LENGTHS, size)

    def _coding(self) -> None:
        random = self.random
        match random.randrange(4):
            case 0:
                self._add(b"Transfer-Encoding: %b\r\n" % random.choice(CODINGS))
            case 1:
                self.coding_name = random.choice(
                    (*NAMES[6:13], b"Transfer-Encoding\r\n", b"Transfer_Encoding")
                )
            case 2:
                self.version = b"HTTP/1.0"
            case _:
                self.coding = random.choice(CODINGS)

    def _both(self) -> None:
        size = self.random.choice((len(self.body), 0, 5, 36))
        if self.framing == "length":
            self._add(b"Transfer-Encoding: %b\r\n" % self.random.choice(CODINGS))
        else:
            self._add(b"Content-Length: %d\r\n" % size)

    def _chunk(self) -> None:
        random = self.random
        if not self.chunks or random.random() < 0.2:
            self.last = random.choice((
                b"00\r\n", b"0;a\r\n", b"0 \r\n", b"0\n", b"-0\r\n", b"0x0\r\n",
                b"000000000000000000\r\n", b"", b"0", b"0\r", b"\r\n0\r\n", b"0;a=\"\r\n\"\r\n",
                b"0%b\r\n" % random.choice(EXTENSIONS),
            ))  # fmt: skip
            return
        at = random.randrange(len(self.chunks))
        size, line_end, data, end = self.chunks[at]
        match random.randrange(5):
            case 0 | 1:
                size = _filled(random, CHUNK_SIZES, len(data))
            case 2:
                size += random.choice(EXTENSIONS)
            case 3:
                line_end = random.choice(CHUNK_ENDS)
            case _:
                end = random.choice(CHUNK_ENDS)
        self.chunks[at] = size, line_end, data, end

    def _trailer(self) -> None:
        random = self.random
        if random.random() < 0.7:
            self.trailers += random.choice(TRAILERS)
        else:
            self.end = random.choice((b"\n", b"\r", b"", b"\r\n\r\n", b"\n\r\n", b" \r\n"))

    def _add(self, line: bytes) -> None:
        self.fields.insert(self.random.randrange(len(self.fields) + 1), line)

    # -- the bytes -------------------------------------------------------------------------------
    def make(self) -> bytes:
        lines, body = [*self.host, *self.fields], self.body
        if self.framing == "length":
            lines.append(b"%b: %b\r\n" % (self.length_name, self.length))
        elif self.framing == "chunked":
            lines.append(b"%b: %b\r\n" % (self.coding_name, self.coding))
            body = b"".join(b"".join(chunk) for chunk in self.chunks)
            body += self.last + self.trailers + self.end
        else:
            body = b""
        if self.random.random() < 0.3:
            self.random.shuffle(lines)
        line = self.space.join((self.method, self.target, self.version))
        return line + self.line_end + b"".join(lines) + b"\r\n" + body
