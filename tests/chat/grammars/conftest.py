"""The embedded checkpoint's vocabulary and a compiler for it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from predictors.chat.detokenize import Vocabulary
from predictors.chat.grammars.compiler import GrammarCompiler
from tests.chat.grammars.walks import ENDS, VOCAB, learn_bytes
from tests.chat.room import CHECKPOINT


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    made = Vocabulary(tokenizer, VOCAB)
    learn_bytes(made)
    return made


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer, vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB, ENDS)
