"""The hidden tests of lab 6."""

from minipeft.labs.kit import close, same, task, that, whole, zeros


def ids_of(n, seed):
    return whole(1, 25, n, 8, seed=seed)


@task(1)
def test_it_is_tested_on_the_test_rows(lab, mp):
    ids, other = ids_of(30, 3), ids_of(40, 4)
    guess = lab.new_model({}, 5)(ids).data.argmax(axis=-1)
    right, wrong = (ids, guess), (ids, 1 - guess)
    rows = other, zeros(40).astype("int64")
    config = mp.peft.HeadConfig()
    same(
        lab.run_cell({}, config, rows, right, 0, 0.01, 5)["accuracy"],
        1.0,
        "without training, the fresh model's guesses",
    )
    same(lab.run_cell({}, config, rows, wrong, 0, 0.01, 5)["accuracy"], 0.0, "measure on the test rows")


@task(1)
def test_it_trains(lab, mp):
    ids = ids_of(64, 6)
    ones = zeros(64).astype("int64") + 1
    got = lab.run_cell({}, mp.peft.HeadConfig(), (ids, ones), (ids, ones), 8, 0.5, 1)
    same(got["accuracy"], 1.0, "all rows are of class 1: after 8 steps the model says so")
    got = lab.run_cell({}, mp.peft.HeadConfig(), (ids, 0 * ones), (ids, ones), 8, 0.5, 1)
    same(got["accuracy"], 0.0, "trained on the training rows alone")


@task(1)
def test_the_pre_trained_weights_are_used_and_stay(lab, mp):
    state = {name: v for name, v in lab.new_model({}, 9).state_dict().items() if not name.startswith("head.")}
    ids = ids_of(40, 7)
    guess = lab.new_model(state, 2)(ids).data.argmax(axis=-1)
    rows = (ids, 1 - guess)
    first = lab.run_cell(state, mp.peft.FullConfig(), rows, (ids, guess), 0, 0.01, 2)
    same(first["accuracy"], 1.0, "new_model(state, seed) has the pre-trained weights and the head of the seed")
    same(first["trainable"] > 20_000, True, "full fine-tuning trains every parameter")


@task(1)
def test_no_cell_changes_another(lab, mp):
    rows, test = (ids_of(40, 8), whole(0, 2, 40, seed=9)), (ids_of(50, 10), whole(0, 2, 50, seed=11))
    full, head = (mp.peft.FullConfig(), 0.02), (mp.peft.HeadConfig(), 0.02)
    alone = lab.compare({}, {"head": head}, rows, test, 1, 1)
    after = lab.compare({}, {"full": full, "head": head}, rows, test, 1, 1)
    same(after[1]["accuracy"], alone[0]["accuracy"], "every cell begins with a fresh model, whatever ran before")
    again = lab.compare({}, {"full": full, "head": head}, rows, test, 1, 1)
    same(again, after, "the same seeds give the same rows")


@task(1)
def test_seeds_and_learning_rates_are_used(lab, mp):
    rows, test = (ids_of(64, 12), whole(0, 2, 64, seed=13)), (ids_of(80, 14), whole(0, 2, 80, seed=15))
    config = mp.peft.FullConfig()
    got = lab.compare({}, {"slow": (config, 1e-9), "fast": (config, 0.05)}, rows, test, 2, 2)
    accuracies = [row["accuracy"] for row in got]
    that(accuracies[0] != accuracies[1], "the seeds 0 and 1 draw other heads: their accuracies differ")
    that(accuracies[0] != accuracies[2], "each method has its own learning rate")


@task(2)
def test_many_seeds(lab):
    values = [0.91, 0.85, 0.88, 0.97]
    rows = [{"method": "m", "seed": s, "trainable": 7, "accuracy": v} for s, v in enumerate(values)]
    mean = sum(values) / 4
    (row,) = lab.summarise(rows)
    close(row["mean"], mean, "the mean")
    close(row["sd"], (sum((v - mean) ** 2 for v in values) / 3) ** 0.5, "divide by n - 1 = 3", 4096)
    same([row["trainable"], row["n"]], [7, 4], "trainable and n")


@task(2)
def test_a_single_seed(lab):
    (row,) = lab.summarise([{"method": "m", "seed": 0, "trainable": 7, "accuracy": 0.5}])
    same(row["sd"], None, "one seed says nothing about the spread: None, not 0")


@task(2)
def test_in_any_order(lab):
    sizes = {"c": 300, "a": 1000, "b": 20}
    rows = [{"method": m, "seed": s, "trainable": n, "accuracy": 0.5} for s in range(2) for m, n in sizes.items()]
    got = lab.summarise(rows)
    same([(row["method"], row["n"]) for row in got], [("b", 2), ("c", 2), ("a", 2)], "sorted by trained parameters")


@task(3)
def test_markers_and_error_bars(lab):
    table = [{"method": f"m{i}", "trainable": 10**i, "mean": 0.1 * i, "sd": 0.02, "n": 2} for i in range(1, 7)]
    (ax,) = lab.plot(table).axes
    handles, labels = ax.get_legend_handles_labels()
    same(list(labels), [f"m{i}" for i in range(1, 7)], "one label a method")
    markers = {str(handle[0].get_marker()) for handle in handles}
    that(len(markers) == 6 and not markers & {"None", "none", "", " "}, "six methods, six different markers")
    that(ax.get_legend() is not None, "ax.legend() draws the legend")
    (segment,) = handles[2][2][0].get_segments()
    close(sorted(float(y) for _, y in segment), [28.0, 32.0], "the error bar: mean ± sd, in per cent", 4096)


@task(3)
def test_no_error_bar_without_a_spread(lab):
    (ax,) = lab.plot([{"method": "m", "trainable": 10, "mean": 0.5, "sd": None, "n": 1}]).axes
    handles, _ = ax.get_legend_handles_labels()
    bars = handles[0][2]
    that(len(bars) == 0, "sd is None: a point without an error bar, not one of length 0")


@task(4)
def test_ties(lab):
    table = [row("a", 10, 0.5), row("b", 10, 0.6), row("c", 20, 0.6), row("d", 30, 0.7), row("e", 30, 0.7)]
    same(list(lab.frontier(table)), ["b", "d", "e"], "b beats a and c; d and e are equal, so neither beats the other")


@task(4)
def test_out_of_order(lab):
    table = [row("large", 1000, 0.9), row("small", 10, 0.3), row("middle", 100, 0.8), row("poor", 500, 0.79)]
    same(list(lab.frontier(table)), ["small", "middle", "large"], "from the fewest parameters to the most")
    same(lab.cheapest_within(table, 10.0), "middle", "exactly 10 points below the best is within 10 points")
    same(lab.cheapest_within(table, 100.0), "small", "of all that are within, the fewest parameters")
    same(lab.cheapest_within(table, 0.0), "large", "within 0 points: the best")


def row(method, trainable, mean):
    return {"method": method, "trainable": trainable, "mean": mean, "sd": 0.01, "n": 2}
