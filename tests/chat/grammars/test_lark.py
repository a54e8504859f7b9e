from __future__ import annotations

import pytest

from predictors.chat.grammars.compiler import GrammarCompiler
from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.answer_format import choice_format, grammar_format
from tests.chat.grammars.walks import begins, takes

SUM = 'start: term ("+" term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]{1,3}/\n'
GBNF = 'root ::= "[" item ("," item)* "]"\nitem ::= [0-9]+ | "null"\n'


@pytest.mark.parametrize(
    ("grammar", "taken", "refused"),
    [
        (SUM, "1+(22+3)", "1+"),
        (GBNF, "[1,null,30]", "[1,]"),
        ('start: A\nA: "a" B?  // a comment with < and %json\nB: /<b>/i', "a<B>", "a<"),
        ('%ignore / /\nstart: "a" "b"', "a b", "ba"),
        ('start: "a"{2,3}', "aaa", "a"),
    ],
    ids=["lark", "gbnf", "comment", "ignore", "times"],
)
def test_a_grammar_is_kept(
    grammar: str, taken: str, refused: str, compiler: GrammarCompiler
) -> None:
    compiled = compiler.compile(grammar_format("grammar", grammar))
    assert takes(compiled, taken)
    assert not takes(compiled, refused)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("start: <|im_start|>", "tokens by name"),
        ("start: <[0-800]>", "tokens by name"),
        ('start: A\nA: /a*/ & /b*/\nB: "<"', "intersections"),
        ('start: A\nA: ~"a"', "repetitions"),
        ("start: @other", "other grammars"),
        ('start: %json {"type": "null"}', "%json"),
        ('start: %regex {"substring_chars": "abc"}', "%regex"),
        ('%llguidance {"no_forcing": true}\nstart: "a"', "%llguidance"),
        ('start: a\na[max_tokens=3]: "a"', "options"),
        ('start: a\n  a[stop="x"]  : /.*/', "options"),
        ('start: "a', "can't be turned"),
        ("start: missing", "can't be turned"),
        ("start: a\na: b\nb: a", "can't be turned"),
        ("root ::= (", "GBNF"),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "GBNF"),
        ("start: " + "(" * 5000 + '"a"' + ")" * 5000, "can't be turned"),
        ("start: /a(?=b)/", "can't be read"),
    ],
    ids=range(17),
)
def test_what_is_not_text_is_refused(grammar: str, said: str, compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        compiler.compile(grammar_format("grammar", grammar))
    assert caught.value.param == "grammar"


@pytest.mark.parametrize(
    "grammar",
    [
        'start: "a"{1001}',
        'start: (("a"{1,999}){1,999}){1,999}',
        'start: "a"{99999999999999999999}',
        'start: "' + "a" * 2049 + '"',
        "start: /a{99999}/",
        "start: " + '"a" ' * 4096,
    ],
    ids=range(6),
)
def test_a_grammar_that_costs_too_much_is_refused(grammar: str, compiler: GrammarCompiler) -> None:
    with pytest.raises(TooLarge):
        compiler.compile(grammar_format("grammar", grammar))


def test_choices_are_taken_as_they_stand(compiler: GrammarCompiler) -> None:
    choices = ['say "a"', "back\\slash", "new\nline", "😀", "%json", "<|im_end|>", "a", "ab"]
    grammar = compiler.compile(choice_format("choice", choices))
    assert all(takes(grammar, choice) for choice in choices)
    assert not begins(grammar, "b ")
    with pytest.raises(TooLarge):
        compiler.compile(choice_format("choice", ["a" * 2049]))
