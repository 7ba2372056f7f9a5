"""The public tests of lab 6: `minipeft lab check .`, or `pytest`, or `pytest -m lab6_2` for task 2 alone."""

import re

from minipeft.labs.kit import close, same, task, that, whole

TABLE = [
    {"method": "head", "trainable": 66, "mean": 0.70, "sd": 0.02, "n": 3},
    {"method": "LoRA", "trainable": 1500, "mean": 0.88, "sd": None, "n": 1},
    {"method": "top-1", "trainable": 9000, "mean": 0.85, "sd": 0.01, "n": 3},
    {"method": "full", "trainable": 27000, "mean": 0.90, "sd": 0.03, "n": 3},
]


def rows_of(n, seed):
    return whole(1, 25, n, 8, seed=seed), whole(0, 2, n, seed=seed + 1)


@task(1)
def test_one_cell(lab, mp):
    got = lab.run_cell({}, mp.peft.HeadConfig(), rows_of(40, 1), rows_of(30, 2), 2, 0.01, 0)
    same(sorted(got), ["accuracy", "trainable"], "a dict with the keys trainable and accuracy")
    same(got["trainable"], 66, "the classifier has 32 · 2 weights and 2 biases; count what requires a gradient")
    that(0 <= got["accuracy"] <= 1, "the accuracy is in [0, 1]")


@task(1)
def test_a_row_for_every_method_and_seed(lab, mp):
    methods = {"a": (mp.peft.HeadConfig(), 0.01), "b": (mp.peft.LoraConfig(r=1), 0.01)}
    rows = lab.compare({}, methods, rows_of(40, 1), rows_of(30, 2), 1, 2)
    got = [(row["method"], row["seed"]) for row in rows]
    same(got, [("a", 0), ("a", 1), ("b", 0), ("b", 1)], "method by method, the seeds 0 and 1 of each")
    same(set(rows[0]) == {"method", "seed", "trainable", "accuracy"}, True, "method, seed, trainable, accuracy")


@task(2)
def test_the_mean_and_the_spread(lab):
    rows = [cell("full", 100, 0.5), cell("lora", 10, 0.4), cell("full", 100, 0.7), cell("lora", 10, 0.4)]
    got = lab.summarise(rows)
    same([row["method"] for row in got], ["lora", "full"], "from the fewest trained parameters to the most")
    close([row["mean"] for row in got], [0.4, 0.6], "the mean over the seeds")
    close(1 + got[1]["sd"], 1 + 0.02**0.5, "the standard deviation divides by n - 1")


@task(3)
def test_the_axes(lab):
    (ax,) = lab.plot(TABLE).axes
    same(ax.get_xscale(), "log", "parameters span orders of magnitude: a logarithmic x axis")
    that("trainable parameters" in ax.get_xlabel().lower(), "the x axis says: trainable parameters")
    label = ax.get_ylabel().lower()
    that("accuracy" in label and "%" in label, "the y axis says: accuracy, and its unit, %")


@task(3)
def test_a_point_a_method(lab):
    points = points_of(lab.plot(TABLE))
    same(sorted(points), sorted(row["method"] for row in TABLE), "one errorbar a method, label=method, and a legend")
    for row in TABLE:
        x, y, _ = points[row["method"]]
        close(
            [x, y], [row["trainable"], 100 * row["mean"]], f"{row['method']}: its parameters, its accuracy in per cent"
        )


@task(4)
def test_the_frontier(lab):
    hint = "top-1 has more parameters than LoRA and a lower accuracy: LoRA beats it"
    same(list(lab.frontier(TABLE)), ["head", "LoRA", "full"], hint)


@task(4)
def test_the_cheapest_that_is_good_enough(lab):
    same(
        lab.cheapest_within(TABLE, 2.5),
        "LoRA",
        "LoRA is 2 points below the best and has the fewest parameters of those",
    )
    same(lab.cheapest_within(TABLE, 1.0), "full", "within 1 point there is only the best itself")


@task(5)
def test_question_1_is_answered(answers):
    answered(answers, 1)


@task(5)
def test_question_2_is_answered(answers):
    answered(answers, 2)


@task(5)
def test_question_3_is_answered(answers):
    answered(answers, 3)


def cell(method, trainable, accuracy):
    return {"method": method, "seed": 0, "trainable": trainable, "accuracy": accuracy}


def points_of(figure):
    """{label: (x, y, marker)} of the errorbars in the legend."""
    (ax,) = figure.axes
    handles, labels = ax.get_legend_handles_labels()
    lines = [handle[0] for handle in handles]
    found = [(float(line.get_xdata()[0]), float(line.get_ydata()[0]), str(line.get_marker())) for line in lines]
    return dict(zip(labels, found, strict=True))


def answered(answers, number):
    """Whether a question has an answer of 40 words or more with a number in it. A person reads what it says."""
    parts = re.split(r"^## (\d)\..*$", answers, flags=re.M)
    text = dict(zip(parts[1::2], parts[2::2], strict=True)).get(str(number), "")
    first, *others = text.split("<!--")
    outside = first + "".join(part.partition("-->")[2] for part in others)  # what is in comments is no answer
    words = re.findall(r"\w+", outside)
    missing = f"Lab 6, task 5: answer question {number} in answers.md, in 40 words or more [{len(words)} words]."
    that(len(words) >= 40 and len(set(words)) >= 20, missing)
    that(any(word.isdigit() for word in words), f"Lab 6, task 5: question {number} needs the numbers of your run.")
