"""Instruction data: files, templates, chat formats, targets on the output alone, and the teacher's filter."""

from __future__ import annotations

import json

import numpy as np
import pytest
from decoders import TEXTS, TOKENIZER

from minipeft.data import IGNORE, Example, Task, Tokenizer
from minipeft.data.bpe import END, byte_level, train_bpe
from minipeft.data.chat import chat_format, encode_instructions, fit
from minipeft.data.filtering import Filter
from minipeft.data.instruct import Instruction, ask, load_instructions, read_instructions, write_instructions
from minipeft.data.instruct_templates import TEMPLATES
from minipeft.data.splits import normalise
from minipeft.errors import UserError

ROW = Instruction("say whether the cat sat.", "the cat sat on the mat", "yes")


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- files


def test_a_file_comes_back_as_it_was_written(tmp_path):
    rows = [ROW, Instruction("naïve 🙂?", "", "line\nline", "me")]
    write_instructions(tmp_path / "a.jsonl", rows)
    assert read_instructions(tmp_path / "a.jsonl") == [Instruction(**{**vars(rows[0]), "source": "a"}), rows[1]]


GOOD = {"instruction": "a", "input": "", "output": "b"}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"instruction": "a", "input": ""}, "line 2: no 'output'; fields found: 'instruction', 'input'"),
        ({"instruction": "a", "output": "b"}, "line 2: no 'input'"),
        ({"input": "a", "output": "b"}, "line 2: no 'instruction'"),
        ({**GOOD, "output": 3}, "line 2: 'output' must be a text, not 3"),
        ({**GOOD, "output": " "}, "line 2: 'output' is empty"),
        ({**GOOD, "instruction": ""}, "line 2: 'instruction' is empty"),
        (["a", "b"], 'line 2: not a JSON object; expected {"instruction": ..., "input": ..., "output": ...}'),
    ],
)
def test_a_bad_row_is_named_with_its_field(tmp_path, bad, says):
    with pytest.raises(UserError) as error:
        read_instructions(written(tmp_path / "a.jsonl", [GOOD, bad]))
    assert says in str(error.value)


def test_an_empty_file_and_one_that_is_too_small_are_errors(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        read_instructions(written(tmp_path / "a.jsonl", []))
    with pytest.raises(UserError, match="too few rows to hold some out"):
        load_instructions(str(written(tmp_path / "b.jsonl", [GOOD] * 5)))
    with pytest.raises(UserError, match="Did you mean 'sarcasm'"):
        load_instructions("sarcasms")


def test_of_a_file_whole_instructions_are_held_out(tmp_path):
    rows = [{"instruction": f"do {i % 30}", "input": str(i), "output": "b"} for i in range(300)]
    made = load_instructions(str(written(tmp_path / "many.jsonl", rows)))
    assert len(made.train) + len(made.test) == 300
    assert not {row.instruction for row in made.train} & {row.instruction for row in made.test}
    few = [{"instruction": f"do {i % 3}", "input": str(i), "output": "b"} for i in range(300)]
    made = load_instructions(str(written(tmp_path / "few.jsonl", few)))
    assert not {row.words for row in made.train} & {row.words for row in made.test}
    assert 30 < len(made.test) < 90


# ---- templates


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ways_of_asking_differ_and_fit_the_classes(name):
    from minipeft.data.tasks import _SOURCES

    ways, labels = TEMPLATES[name], _SOURCES[name].labels
    texts = [normalise(way.instruction) for way in (*ways.train, *ways.held_out)]
    assert len(set(texts)) == len(texts)
    assert len(ways.train) >= 4
    for way in (*ways.train, *ways.held_out):
        assert len(way.answers) == len(labels)
        assert len(set(way.answers)) > 1, "an instruction that always has one answer teaches nothing"
    said = {answer for way in ways.train for answer in way.answers}
    assert {answer for way in ways.held_out for answer in way.answers} <= said, "no answer is new in the test"


def test_asking_gives_the_answer_of_the_class_and_takes_turns():
    task = Task("boolq", ("no", "yes"), (), (), ())
    rows = ask(task, [Example("q", 1, "p"), Example("r", 0, "s")] * 4, TEMPLATES["boolq"].train)
    assert rows[0].words.endswith("\n\nQuestion: q\nPassage: p")
    assert [row.output for row in rows[:4]] == ["yes", "no", "true", "false"]
    assert {row.instruction for row in rows} == {way.instruction for way in TEMPLATES["boolq"].train}
    assert {row.source for row in rows} == {"boolq"}


def test_the_fetched_sets_keep_test_texts_and_instructions_apart(asset):
    asset("sarcasm"), asset("tweets")
    made = load_instructions("sarcasm,tweets", progress=False)
    assert [row.source for row in made.train[:4]] == ["sarcasm", "tweets", "sarcasm", "tweets"]
    assert not {row.instruction for row in made.train} & {row.instruction for row in made.test}
    assert not {row.input for row in made.train} & {row.input for row in made.test}


def test_half_a_character_is_named(tmp_path):
    (tmp_path / "half.jsonl").write_text(r'{"instruction": "a \ud83d", "input": "", "output": "b"}' + "\n")
    with pytest.raises(UserError, match="line 1: instruction holds half of a surrogate pair"):
        read_instructions(tmp_path / "half.jsonl")


# ---- chat and targets


def test_targets_are_the_output_and_its_end_and_nothing_else():
    rows = encode_instructions(TOKENIZER, [ROW])
    ids, labels = rows.ids[0], rows.labels[0]
    prompt = TOKENIZER.ids(chat_format(TOKENIZER).prompt(ROW.words))
    answer = [*TOKENIZER.ids("yes"), TOKENIZER.token_id("<|im_end|>")]
    assert ids.tolist() == [*prompt, *answer][:-1]
    assert (labels[: len(prompt) - 1] == IGNORE).all()
    assert labels[len(prompt) - 1 :].tolist() == answer  # the first is the target of the prompt's last token
    assert rows.targets([0]) == len(answer)


def test_the_chat_marks_who_speaks_by_special_tokens():
    prompt = chat_format(TOKENIZER).prompt(ROW.words)
    assert prompt == (
        "<|im_start|>user\nsay whether the cat sat.\n\nthe cat sat on the mat<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = TOKENIZER.ids(prompt)
    assert ids.count(TOKENIZER.token_id("<|im_start|>")) == 2
    assert ids.count(TOKENIZER.token_id("<|im_end|>")) == 1


def test_without_chat_tokens_headings_and_the_end_of_text_do():
    tokens = json.loads(TOKENIZER._fast.to_str())["model"]
    bare = byte_level(
        {t: n for t, n in tokens["vocab"].items() if not t.startswith("<|im_")}, [], [END], {"eos_token": END}
    )
    chat = chat_format(bare)
    assert chat.end == bare.eos_id
    assert chat.prompt("go") == "### Instruction:\ngo\n\n### Response:\n"
    nothing = Tokenizer(bare._fast)
    nothing.eos_id = None
    with pytest.raises(UserError, match="no end-of-text token"):
        chat_format(nothing)


@pytest.mark.slow
def test_the_chat_is_that_of_smollm2(asset):
    asset("smollm2")
    pytest.importorskip("gguf")
    jinja2 = pytest.importorskip("jinja2", reason="the model's own template is written in Jinja")
    from minipeft.models import load_tokenizer

    tokenizer = load_tokenizer("smollm2")
    template = json.loads(tokenizer._companions["tokenizer_config.json"])["chat_template"]
    theirs = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = theirs.render(messages=[{"role": "user", "content": ROW.words}], add_generation_prompt=True)
    assert text == chat_format(tokenizer).prompt(ROW.words)


def test_transformers_writes_the_chat_of_a_trained_tokenizer(tmp_path):
    pytest.importorskip("jinja2", reason="transformers renders chat templates with it")
    AutoTokenizer = pytest.importorskip("transformers", reason="the reader of the files").AutoTokenizer
    TOKENIZER.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": ROW.words}]
    assert theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == chat_format(
        TOKENIZER
    ).prompt(ROW.words)


def test_a_system_message_that_the_template_begins_with_is_kept():
    template = "{% if not system %}{{ '<|im_start|>system\\nbe brief<|im_end|>\\n' }}{% endif %}"
    with_system = Tokenizer(TOKENIZER._fast, {"tokenizer_config.json": json.dumps({"chat_template": template})})
    assert (
        chat_format(with_system).prompt("go").startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n")
    )


@pytest.mark.parametrize("room", [60, 66, 70, 75, 200])
def test_an_input_that_is_too_long_is_cut_at_a_word(room):
    row = Instruction("say it.", " ".join(["cat"] * 40), "yes")
    assert len(TOKENIZER.ids(row.input)) < 200
    (cut,) = fit(TOKENIZER, [row], room)
    size = lambda n: (
        encode_instructions(TOKENIZER, [Instruction(row.instruction, " ".join(["cat"] * n), "yes")]).lengths
    )
    kept = len(cut.input.split())
    assert size(kept) <= room
    assert kept == 40 or size(kept + 1) > room, "as many words as fit"
    assert (cut.instruction, cut.output) == (row.instruction, row.output)


def test_an_instruction_that_does_not_fit_is_named():
    with pytest.raises(UserError, match=r"'say whether the cat sat\.'\.\.\. and its output have more than 20 tokens"):
        fit(TOKENIZER, [ROW], 20)
    assert fit(TOKENIZER, [ROW], 200) == [ROW]


def test_a_tokenizer_that_puts_tokens_around_a_text_does_so_once():
    from tokenizers import processors

    fast = train_bpe(TEXTS, 300)
    fast._fast.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=None, special_tokens=[(END, fast.eos_id)]
    )
    ids = np.array([*encode_instructions(fast, [ROW]).ids[0]])
    assert (ids == fast.eos_id).sum() == 1
    assert ids[0] == fast.eos_id


# ---- the teacher's filter


def test_the_filter_keeps_what_is_whole_new_and_of_its_own_words():
    chosen = Filter()
    headline = "local man finds lost cat in the garden of a friend"
    row = lambda output, text=headline: Instruction("Explain this.", text, output)
    assert chosen.add(row("A man looked for his pet and at last he found it."))
    assert not chosen.add(row("A man looked for his pet, and he found it at last!", "another headline"))
    assert not chosen.add(row("A story that never comes to"), ended=False)
    assert not chosen.add(row(" "))
    assert not chosen.add(row("I'm sorry, but I do not know."))
    assert not chosen.add(row("Local man finds lost cat in the garden of a friend."))
    assert not chosen.add(row("it is good it is good it is good it is good"))
    assert chosen.add(row("Pets."))
    assert chosen.add(row("Pets.", "a quite different headline about dogs")), "a short answer may fit many inputs"
    assert not chosen.add(row("Pets."))
    assert len(chosen.kept) == 3
    assert chosen.dropped == {
        "duplicate": 2,
        "cut off": 1,
        "empty": 1,
        "refusal": 1,
        "copied": 1,
        "repeats itself": 1,
    }
