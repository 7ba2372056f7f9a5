# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---


# %% [markdown]
# # Instruction tuning
#
# **The question.** A base model goes on from any text in the manner of what it has read. How does it become one that
# answers when it is told to do something, and what of that can it learn from a few thousand examples?
#
# Nothing new is needed: the loss of the next token, as in pre-training, on texts of one form, an instruction and its
# answer. Two things matter, and we look at both: *which* tokens the loss is on, and *what* is learnt.
#
# The model is small enough for a laptop: glassllm, 0.85 million parameters, which has read children's stories.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minipeft as mp
from minipeft.data.chat import encode_instructions, fit
from minipeft.data.instruct import load_instructions
from minipeft.experiments.instruct import examine, guess
from minipeft.peft import LoraConfig, get_peft_model
from minipeft.report.lesson import begin
from minipeft.training import Trainer, TrainingConfig

lesson = begin("10_instruction_tuning")
mp.seed(0)
model = mp.load_model("glassllm", task="causal-lm")
tokenizer = model.tokenizer

# %% [markdown]
# ## 1. Instructions from labels
#
# Headlines with labels, serious or sarcastic, become instructions by *templates*: several ways to ask for the label, with
# different words for the answer. A model that wants to be right must read the question. Some ways of asking are held out:
# the test is on instructions that were never trained on (Wei et al.).

# %%
data = load_instructions("sarcasm")
train_rows = fit(tokenizer, data.train[: lesson.pick(1200, 160)], 120)
test_rows = fit(tokenizer, data.test[: lesson.pick(120, 16)], 120)
for rows in (train_rows, test_rows):
    print(f"{len(rows)} rows, {len({row.instruction for row in rows})} ways of asking; for example")
    print(f"   {rows[0].instruction!r}\n   {rows[0].input!r}\n   -> {rows[0].output!r}")
met, new = ({row.instruction for row in rows} for rows in (train_rows, test_rows))

# %% [markdown]
# ## 2. The loss is on the answer
#
# With the special marks that say who speaks, a row is one sequence $x_1 \dots x_n$, of which the last tokens are the
# answer $a$ and its end. The instruction is given, and need not be predicted; so only the answer's tokens are targets:
#
# $$L = -\frac{1}{|a|} \sum_{t \in a} \log p_\theta(x_t \mid x_{<t}) .$$
#
# The end token is one of them. A model that is never shown where an answer ends does not stop.

# %%
encoded = encode_instructions(tokenizer, train_rows)
ids, targets = encoded.ids[0], encoded.labels[0]
shown = [(tokenizer.decode([int(i)]), int(t)) for i, t in zip(ids, targets, strict=True)]
print("".join(token for token, _ in shown))
print("targets:", [tokenizer.decode([t]) or "(end)" for _, t in shown if t >= 0])
counted = encoded.targets(range(len(train_rows)))
print(f"{counted:,} of {int(encoded.lengths.sum()):,} tokens are targets: {counted / encoded.lengths.sum():.1%}")

logits = mp.Tensor(np.zeros((1, len(targets), tokenizer.vocab_size), "float32"), requires_grad=True)
mp.functional.cross_entropy(logits, targets[None]).backward()
reached = np.abs(logits.grad[0]).sum(axis=1) > 0  # the positions at which the loss asks for anything

# %% [markdown]
# ## 3. Before and after
#
# We ask the base model, train it by LoRA on every linear layer, and ask again. Three measures on the held-out ways of
# asking: the loss of the answer's tokens; how many answers have the *form* that was asked for, one of the words on
# offer and nothing else; and how many are right. The last has a floor: who always gives the commonest answer is right
# half the time.

# %%
m = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
offered = {}
for row in test_rows:
    offered.setdefault(row.instruction, set()).add(row.output)


def look(name):
    found = examine(m, test_rows, workers=1)
    form = [
        a.lower().rstrip(".") in offered[row.instruction] for a, row in zip(found["answers"], test_rows, strict=True)
    ]
    found["form"] = sum(form) / len(form)
    print(
        f"{name}: loss {found['loss']:.2f}, of the form asked for {found['form']:.0%}, right {found['exact_match']:.0%}"
    )
    print(f"   for example {found['answers'][:3]}")
    return found


before = look("before")
config = TrainingConfig(lr=5e-3, epochs=lesson.pick(2, 1), batch_size=16)
losses = Trainer(m, encoded, tokenizer.pad_id, config).run().losses
after = look("after")
with m.disable_adapter():
    without = look("adapter off")
floor = guess(test_rows)
print(f"the commonest answer to each instruction is right {floor or 0:.0%} of the time; {m.count_parameters()}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
width = max(1, len(losses) // 20)
left.plot(np.convolve(losses, np.ones(width) / width, mode="valid"), color="#009E73")
left.set(xlabel="Step", ylabel="Loss of the answer (nats a token)", title="Training", ylim=(0, None))
places = np.arange(2)
for shift, found, colour, label in ((-0.2, before, "#999999", "before"), (0.2, after, "#009E73", "after")):
    bars = right.bar(places + shift, [100 * found["form"], 100 * found["exact_match"]], 0.38, color=colour, label=label)
    right.bar_label(bars, fmt="%.0f")
if floor:
    right.plot([0.6, 1.4], [100 * floor] * 2, color="#333333", linestyle="--", label="commonest answer")
right.set_xticks(places, ["of the form asked for", "right"])
right.set(ylabel="% of answers", ylim=(0, 119), title="Instructions that it has not met")
right.grid(visible=False, axis="x")
right.legend(loc="upper right", ncols=3, fontsize=8)
lesson.save(figure, "before_and_after")

# %% [markdown]
# The form comes first: in a few hundred steps the model answers with the words it is offered, and stops. Whether the
# answer is right asks for knowledge of what sarcasm is, and 0.85 million parameters that have read children's stories
# do not have it, whatever they are told. Instruction tuning brings out what pre-training has put in. Do it with SmolLM2
# to see the other half: `minipeft train lora:8 --model smollm2 --task instruct:sarcasm --out runs/follow`.
#
# ## What we found
#
# Each claim is checked on what was just computed.

# %%
# No way of asking is in both training and test.
assert not met & new
# The loss asks for the answer and its end, and for nothing else.
assert reached.sum() == len(tokenizer.ids(train_rows[0].output, whole=False)) + 1
assert reached[-int(reached.sum()) :].all()
# The base model does not answer.
assert before["form"] < 0.1 and before["exact_match"] < 0.1
# Training on other ways of asking makes the answers to these likelier.
assert after["loss"] < before["loss"] - 1
# Without the adapter the base model is as it was, word for word.
assert without["answers"] == before["answers"]
if not lesson.fast:
    # It has learnt the form, on instructions it has not met.
    assert after["form"] > 0.7

# %% [markdown]
# ## Exercises
#
# 1. Put the loss on every token (write the next token into all of `labels`). Does the model learn the form as fast?
# 2. Leave one of the training templates alone and drop the others. How much of the form is left on the held-out ways?
# 3. Mix two tasks, `load_instructions("sarcasm,tweets")`. Does the model ever answer a question about a tweet with a word
#    for a headline?
#
# ## Sources
#
# - Wei et al., *Finetuned Language Models Are Zero-Shot Learners*, arXiv 2109.01652: section 2.1 (templates, held-out
#   tasks).
# - Ouyang et al., *Training language models to follow instructions with human feedback*, arXiv 2203.02155.
# - Zhou et al., *LIMA: Less Is More for Alignment*, arXiv 2305.11206: the form is learnt, the knowledge is there already.
# - The code: `minipeft/data/chat.py`, `minipeft/data/instruct_templates.py`, `minipeft/experiments/instruct.py`.
