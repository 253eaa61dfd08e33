"""Trains small models with XGBoost, LightGBM or CatBoost and writes what the library itself answers for hostile rows.

    python tests/python/gbdt_models.py xgboost|lightgbm|catboost

Writes tests/fixtures/gbdt/LIBRARY-VERSION/: the models and cases.json, which the tests of plugins/gbdt run. See
tests/fixtures/README.md for the environments.
"""

import contextlib
import gzip
import importlib
import json
import math
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets

warnings.filterwarnings("ignore")
FIXTURES = Path(__file__).parents[1] / "fixtures" / "gbdt"
COLUMNS = ["a", "b", "cents", "since", "tiny", "half", "kind", "many"]
N = 500
KIND, MANY = 6, 7


# Cases whose contributions are written too.
EXPLAINED = {
    "binary-logistic",
    "multi-softprob",
    "dart-raw",
    "categories-one",
    "categories-sets",
    "forest",
    "gblinear-binary",
}
EXPLAINED |= {"leaves-only", "range", "base-margin", "regression", "multiclass", "binary", "zero-missing", "categories"}


def training_table():
    """Numbers of every size, and two columns of codes. An eighth of the values is missing."""
    rng = np.random.default_rng(11)
    table = np.empty((N, len(COLUMNS)))
    table[:, 0] = rng.normal(size=N)
    table[:, 1] = rng.integers(-8, 9, N) / 4
    table[:, 2] = rng.integers(0, 10**15, N)
    table[:, 3] = 1_700_000_000 + rng.integers(0, 5_000, N)
    table[:, 4] = rng.choice([0.0, -0.0, 1e-40, -1e-40, 1e-36, -1e-36, 1e-30, -1e-30, 0.5, -0.5], N)
    table[:, 5] = np.where(rng.random(N) < 0.5, 0, rng.normal(size=N))
    table[:, KIND] = rng.integers(0, 7, N)
    table[:, MANY] = rng.integers(0, 90, N)
    score = (
        table[:, 0] * 2
        - table[:, 1]
        + (table[:, KIND] % 3)
        + (table[:, 2] > 4e14)
        + np.sin(table[:, MANY])
        + (table[:, 3] % 100 > 40)
        + np.sign(table[:, 4])
        + table[:, 5]
        + rng.normal(size=N) * 0.1
    )
    table[rng.random(table.shape) < 0.12] = np.nan
    return table, score


TABLE, SCORE = training_table()
BINARY = (SCORE > 1).astype(int)
CLASSES = np.digitize(SCORE, [-1, 2])
POSITIVE = np.exp(SCORE / 4)
COUNTS = np.round(POSITIVE)
GROUPS = np.full(N // 10, 10)
GRADES = np.clip(np.digitize(SCORE, [-2, 0, 2]), 0, 3)


def hostile_rows(infinite):
    """Rows from the training table, then the same with one value replaced by each of these."""
    values = [
        np.nan,
        0.0,
        -0.0,
        1e-40,
        -1e-40,
        5e-324,
        1e-35,
        -1e-35,
        1.0000000180025095e-35,
        1e-30,
        -0.5,
        -1.0,
        0.999,
        1e15,
        -1e15,
        999_999_999_999_999.0,
        1_700_002_500.0,
        1_700_002_501.0,
        16_777_217.0,
        3e38,
        -3e38,
        6.0,
        7.0,
        61.0,
        62.0,
        63.0,
        64.0,
        89.0,
        100.0,
        3_000_000_000.0,
    ]
    values += [np.inf, -np.inf] if infinite else []
    rows = [*TABLE[:24]]
    for at, value in enumerate(values):
        row = np.nan_to_num(TABLE[24 + at]) if at % 2 else TABLE[24 + at].copy()
        row[at % len(COLUMNS)] = row[(at * 3 + 1) % len(COLUMNS)] = value
        rows.append(row)
        codes = TABLE[60 + at].copy()
        codes[KIND if at % 2 else MANY] = value
        rows.append(codes)
    rows += [np.full(len(COLUMNS), np.nan), np.zeros(len(COLUMNS))]
    return np.array(rows)


def thousand_rows():
    """1,000 rows like those of the training table."""
    rng = np.random.default_rng(17)
    rows = TABLE[rng.integers(0, N, 1000)]
    rows[:, 0] = np.round(rows[:, 0] + rng.normal(size=1000) / 4, 2)
    rows[:, 5] = np.round(rows[:, 5], 2)
    return rows


def on_thresholds(thresholds, near, single):
    """Rows whose values are thresholds of the model, and the numbers just below and above.

    `thresholds`: pairs of column and value.
    """
    rows = []
    thresholds = sorted({pair for pair in thresholds if np.isfinite(pair[1])})
    for at, (column, value) in enumerate(thresholds[:: max(1, len(thresholds) // 6)]):
        number = np.float32(value) if single else np.float64(value)
        for other in [number, np.nextafter(number, -np.inf), np.nextafter(number, np.inf)]:
            row = near[at % len(near)].copy()
            row[column] = other
            rows.append(row)
    return np.array(rows).reshape(-1, near.shape[1])


def plain(value):
    """A number as JSON has it: `null` for NaN, text for infinities, the shortest digits of a single."""
    if isinstance(value, str):
        return value
    number = float(value)
    if math.isnan(number):
        return None
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return float(str(np.float32(value))) if isinstance(value, np.float32) else number


def nested(array):
    array = np.asarray(array)
    return [nested(row) for row in array] if array.ndim > 1 else [plain(value) for value in array]


class Cases:
    """Collects cases and writes them, a line each."""

    def __init__(self, library, tables):
        version = ".".join(importlib.import_module(library).__version__.split(".")[:2])
        self.library = f"{library} {importlib.import_module(library).__version__}"
        self.folder = FIXTURES / f"{library}-{version}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.tables = tables
        self.cases = []

    def add(self, name, model, bound, expected=None, table="hostile", more=(), **case):
        """`bound`: "ulps N" of a single, or "relative X". `case`: columns, parameters, request, refused and more."""
        if expected is not None:
            case["expected"] = nested(expected)
        if len(more):
            case["more"] = nested(more)
        if "refused" not in case:
            case |= {"bound": bound, "table": table}
        self.cases.append({"name": name, "model": model, **case})

    def write(self):
        line = lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        lines = ["{" + f'"library":{line(self.library)},"tables":' + "{"]
        lines.append(",\n".join(f"{line(name)}:{line(nested(rows))}" for name, rows in self.tables.items()))
        lines.append('},"cases":[')
        lines.append(",\n".join(map(line, self.cases)))
        lines.append("]}")
        (self.folder / "cases.json").write_text("\n".join(lines) + "\n")
        for path in list(self.folder.iterdir()):
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            path.unlink()
        sizes = [path.stat().st_size for path in self.folder.iterdir()]
        print(f"{self.library}: {len(self.cases)} cases, {len(sizes)} files, {sum(sizes)} bytes")


def real(loader, rows=24, columns=8):
    """A data set bundled with scikit-learn, cut to size."""
    data = loader()
    return data.data[:, :columns], data.target, data.data[:: len(data.data) // rows][:rows, :columns]


def category_frame():
    """Columns of categories as pandas has them: texts in an order of their own, one that never occurs, numbers."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "town": pd.Categorical(
                rng.choice(["Zug", "Aarau", "Genève"], N), categories=["Zug", "Aarau", "Genève", "never"]
            ),
            "size": rng.normal(size=N),
            "rooms": pd.Categorical(rng.choice([10, 3, 7], N)),
        }
    )
    town = frame.town.cat.codes.to_numpy()
    score = (town == 0) * 2.0 - (town == 2) + (frame.rooms.cat.codes.to_numpy() == 1) + (frame["size"] > 0)
    frame.loc[::17, "size"] = np.nan
    frame.loc[::23, "town"] = None
    return frame, score + rng.normal(size=N) * 0.1


def codes(frame):
    """The table a caller sends: categories by index, NaN where missing."""
    columns = [
        frame[name].cat.codes.replace(-1, np.nan) if frame[name].dtype.name == "category" else frame[name]
        for name in frame
    ]
    return np.column_stack([np.asarray(column, dtype=float) for column in columns])


CATEGORIES = {"town": ["Zug", "Aarau", "Genève", "never"], "rooms": ["3", "7", "10"]}


def described(names, **categories):
    """A manifest's features: names, and the categories of some."""
    return [{"name": name, **({"categories": categories[name]} if name in categories else {})} for name in names]


def make_xgboost():
    import xgboost

    version = tuple(map(int, xgboost.__version__.split(".")[:2]))
    rows = hostile_rows(infinite=False)
    cases = Cases("xgboost", {"hostile": rows})
    exact, linked = "ulps 0", "ulps 1"

    def thresholds(booster, names):
        if booster.num_boosted_rounds() == 0 or not hasattr(booster, "trees_to_dataframe"):
            return []
        try:
            trees = booster.trees_to_dataframe()
        except Exception:  # dart and vector leaves have none
            return []
        trees = trees[trees.Feature != "Leaf"]
        column = lambda name: names.index(name) if name in names else int(name[1:])
        return [(column(name), value) for name, value in zip(trees.Feature, trees.Split) if not np.isnan(value)]

    def case(
        name,
        label,
        bound=linked,
        rounds=5,
        suffix="json",
        types=None,
        table="hostile",
        data=None,
        names=None,
        group=None,
        matrix=None,
        ask=None,
        margin=None,
        train=None,
        **parameters,
    ):
        data, rows = (TABLE, cases.tables["hostile"]) if data is None else (data, cases.tables[table])
        enable = {"feature_types": types, "enable_categorical": True} if types else {}
        build = lambda data, label=None: xgboost.DMatrix(data, label, feature_names=names, **enable)
        training = build(data, label)
        if group is not None:
            training.set_group(group)
        if matrix:
            matrix(training)
        parameters = {"max_depth": 3, "seed": 3, "nthread": 1, **parameters}
        booster = xgboost.train(parameters, training, rounds, **(train or {}))
        model = f"{name}.{suffix}"
        booster.save_model(cases.folder / model)
        near = rows[:20] if types is None else rows[:20]
        more = on_thresholds(thresholds(booster, names or []), near, single=True)
        asked = build(np.concatenate([rows, more]) if len(more) else rows)
        if margin is not None:
            asked.set_base_margin(margin(asked.num_row()))
        expected = booster.predict(asked, **(ask or {}))
        if name in EXPLAINED:
            with contextlib.suppress(xgboost.core.XGBoostError):  # some boosters' are not supported
                explained[name] = nested(booster.predict(asked, pred_contribs=True, **(ask or {}))[:60])
        return booster, model, bound, expected, more

    explained = {}

    def add(name, label, bound=linked, request=None, table="hostile", **rest):
        booster, model, bound, expected, more = case(name, label, bound, table=table, **rest)
        more_case = {"contributions": explained[name]} if name in explained else {}
        cases.add(name, model, bound, expected, table, more, **({"request": request} if request else {}), **more_case)
        return booster

    # Objectives. Sums are exact; what goes through exp differs by the last bit of the C library's.
    add("binary-logistic", BINARY, objective="binary:logistic")
    add("binary-logistic-ubj", BINARY, suffix="ubj", objective="binary:logistic", base_score=0.3)
    add("binary-logitraw", BINARY, exact, objective="binary:logitraw")
    add("binary-logitraw-base", BINARY, exact, objective="binary:logitraw", base_score=0.3)
    add("binary-hinge", BINARY, exact, objective="binary:hinge")
    add("reg-logistic", BINARY, objective="reg:logistic")
    add("multi-softmax", CLASSES, exact, objective="multi:softmax", num_class=3)
    add("multi-softprob", CLASSES, objective="multi:softprob", num_class=3)
    add("multi-softprob-ubj", CLASSES, suffix="ubj", objective="multi:softprob", num_class=3, base_score=0.2)
    add("reg-squarederror", SCORE, exact, objective="reg:squarederror")
    add("reg-squarederror-base", SCORE, exact, objective="reg:squarederror", base_score=-1.7)
    add("reg-squaredlogerror", POSITIVE, exact, objective="reg:squaredlogerror")
    add("reg-absoluteerror", SCORE, exact, objective="reg:absoluteerror")
    add("reg-pseudohubererror", SCORE, exact, objective="reg:pseudohubererror")
    add("reg-gamma", POSITIVE, objective="reg:gamma")
    add("reg-gamma-base", POSITIVE, objective="reg:gamma", base_score=2.5)
    add("reg-tweedie", POSITIVE, objective="reg:tweedie", tweedie_variance_power=1.3)
    add("count-poisson", COUNTS, objective="count:poisson")
    add("survival-cox", np.where(BINARY, POSITIVE, -POSITIVE), objective="survival:cox")
    add("survival-cox-base", np.where(BINARY, POSITIVE, -POSITIVE), objective="survival:cox", base_score=1.5)

    def bounds(training):
        training.set_float_info("label_lower_bound", POSITIVE)
        training.set_float_info("label_upper_bound", np.where(BINARY, POSITIVE, np.inf))

    add("survival-aft", POSITIVE, matrix=bounds, objective="survival:aft", aft_loss_distribution="logistic")
    add("rank-pairwise", GRADES, exact, group=GROUPS, objective="rank:pairwise")
    add("rank-ndcg", GRADES, exact, group=GROUPS, objective="rank:ndcg")
    add("rank-map", BINARY, exact, group=GROUPS, objective="rank:map")
    if version >= (2, 0):
        add("reg-quantileerror", SCORE, exact, objective="reg:quantileerror", quantile_alpha=0.8)
        add("reg-quantileerror-three", SCORE, exact, objective="reg:quantileerror", quantile_alpha=[0.1, 0.5, 0.9])

    # Boosters and trees.
    add("dart", BINARY, objective="binary:logistic", booster="dart", rate_drop=0.4, rounds=8)
    add(
        "dart-raw",
        SCORE,
        exact,
        objective="reg:squarederror",
        booster="dart",
        rate_drop=0.4,
        rounds=8,
        base_score=123.4,
    )
    add(
        "dart-softprob",
        CLASSES,
        objective="multi:softprob",
        num_class=3,
        booster="dart",
        rate_drop=0.4,
        normalize_type="forest",
    )
    add("gblinear", SCORE, exact, objective="reg:squarederror", booster="gblinear", updater="coord_descent", eta=0.1)
    add("gblinear-binary", BINARY, objective="binary:logistic", booster="gblinear", updater="coord_descent", eta=0.1)
    add(
        "gblinear-softprob",
        CLASSES,
        objective="multi:softprob",
        num_class=3,
        booster="gblinear",
        updater="coord_descent",
        eta=0.1,
    )
    add("forest", SCORE, exact, objective="reg:squarederror", num_parallel_tree=3, subsample=0.6, eta=1, rounds=1)
    add(
        "boosted-forests",
        CLASSES,
        objective="multi:softprob",
        num_class=3,
        num_parallel_tree=2,
        subsample=0.6,
        rounds=2,
    )
    add("exact", SCORE, exact, objective="reg:squarederror", tree_method="exact")
    add(
        "lossguide",
        SCORE,
        exact,
        objective="reg:squarederror",
        tree_method="hist",
        grow_policy="lossguide",
        max_leaves=9,
        max_depth=0,
    )
    add("no-trees", SCORE, exact, rounds=0, objective="reg:squarederror")
    add("leaves-only", SCORE, exact, rounds=2, objective="reg:squarederror", gamma=1e9)
    targets = np.column_stack([SCORE, -SCORE, TABLE[:, 1] > 0])
    add("targets", targets, exact, rounds=3, objective="reg:squarederror", tree_method="hist")
    add("targets-binary", (targets > 0).astype(int), rounds=3, objective="binary:logistic", tree_method="hist")
    if version >= (2, 0):
        vectors = {"tree_method": "hist", "multi_strategy": "multi_output_tree"}
        add("vector-leaves", targets, exact, objective="reg:squarederror", **vectors)
        add("vector-leaves-ubj", targets, exact, suffix="ubj", objective="reg:squarederror", **vectors)
        add("vector-leaves-binary", (targets > 0).astype(int), objective="binary:logistic", **vectors)
        add("vector-leaves-softprob", CLASSES, objective="multi:softprob", num_class=3, **vectors)

    # Categories by number.
    types = ["c" if at in (KIND, MANY) else "q" for at in range(len(COLUMNS))]
    categorical = {
        "types": types,
        "tree_method": "approx" if version < (2, 0) else "hist",
        "objective": "reg:squarederror",
    }
    add("categories-one", SCORE, exact, max_cat_to_onehot=200, **categorical)
    booster = add("categories-sets", SCORE, exact, max_cat_to_onehot=1, **categorical)
    if version >= (3, 0):
        cases.tables["thousand"] = thousand = thousand_rows()
        asked = xgboost.DMatrix(thousand, feature_types=types, enable_categorical=True)
        contributions = nested(booster.predict(asked, pred_contribs=True))
        cases.add(
            "thousand", "categories-sets.json", exact, booster.predict(asked), "thousand", contributions=contributions
        )
    add("categories-sets-ubj", SCORE, exact, suffix="ubj", max_cat_to_onehot=1, **categorical)

    # Requests.
    margins = lambda count: np.linspace(-2, 2, count).astype(np.float32)
    count = len(rows)
    one = lambda count: np.full(count, 0.25, dtype=np.float32)
    add("base-margin", BINARY, margin=one, objective="binary:logistic", request={"base_margin": "0.25"})
    add(
        "base-margin-dart",
        SCORE,
        exact,
        margin=one,
        booster="dart",
        rate_drop=0.4,
        rounds=8,
        objective="reg:squarederror",
        base_score=3.3,
        request={"base_margin": "0.25"},
    )
    add(
        "base-margin-gblinear",
        SCORE,
        exact,
        margin=one,
        booster="gblinear",
        updater="coord_descent",
        eta=0.1,
        objective="reg:squarederror",
        request={"base_margin": "0.25"},
    )
    booster, model, bound, _, _ = case("base-margin-rows", CLASSES, objective="multi:softprob", num_class=3)
    asked = xgboost.DMatrix(rows)
    every = np.stack([margins(count), -margins(count), margins(count) / 3], axis=1)
    asked.set_base_margin(every.ravel() if version < (2, 0) else every)
    text = ",".join(str(value) for value in every.ravel())
    cases.add("base-margin-rows", model, bound, booster.predict(asked), request={"base_margin": text})
    for name, parameters in [
        ("range", {}),
        ("range-parallel", {"num_parallel_tree": 2, "subsample": 0.6}),
        ("range-dart", {"booster": "dart", "rate_drop": 0.4}),
    ]:
        if name == "range-dart" and version < (2, 0):
            continue
        add(
            name,
            CLASSES,
            rounds=6,
            objective="multi:softprob",
            num_class=3,
            ask={"iteration_range": (1, 4)},
            request={"iteration_begin": "1", "iteration_end": "4"},
            **parameters,
        )
    add(
        "ntree-limit",
        SCORE,
        exact,
        rounds=6,
        num_parallel_tree=2,
        subsample=0.6,
        objective="reg:squarederror",
        ask={"iteration_range": (0, 3)},
        request={"ntree_limit": "6"},
    )

    # `inplace_predict`, which XGBoost's estimators use, takes infinities; a DMatrix does not.
    cases.tables["infinite"] = infinite = np.array(
        [
            np.where(TABLE[at] > np.nanmedian(TABLE[at]), value, TABLE[at])
            for at, value in enumerate([np.inf, -np.inf] * 6)
        ]
    )
    booster, model, bound, _, _ = case(
        "infinite", SCORE, exact, objective="reg:squarederror", **{"tree_method": "hist"}
    )
    cases.add("infinite", model, bound, booster.inplace_predict(infinite), "infinite")

    # Early stopping, which XGBoost's two interfaces understand differently.
    fit = {
        "n_estimators": 40,
        "max_depth": 3,
        "learning_rate": 0.6,
        "early_stopping_rounds": 3,
        "n_jobs": 1,
        "tree_method": "hist",
    }
    estimator = xgboost.XGBClassifier(eval_metric="logloss", **fit)
    estimator.fit(TABLE[:300], BINARY[:300], eval_set=[(TABLE[300:], BINARY[300:])], verbose=False)
    assert estimator.best_iteration + 1 < estimator.get_booster().num_boosted_rounds()
    estimator.save_model(cases.folder / "early-stopped.json")
    cases.add("early-stopped", "early-stopped.json", linked, estimator.predict_proba(rows)[:, 1])
    everything = estimator.get_booster().predict(xgboost.DMatrix(rows))
    cases.add("early-stopped-all", "early-stopped.json", linked, everything, parameters={"iterations": "all"})
    estimator = xgboost.XGBClassifier(eval_metric="mlogloss", num_parallel_tree=2, subsample=0.6, **fit)
    estimator.fit(TABLE[:300], CLASSES[:300], eval_set=[(TABLE[300:], CLASSES[300:])], verbose=False)
    assert estimator.best_iteration + 1 < estimator.get_booster().num_boosted_rounds()
    estimator.save_model(cases.folder / "early-stopped-forests.ubj")
    cases.add("early-stopped-forests", "early-stopped-forests.ubj", linked, estimator.predict_proba(rows))
    training, held = xgboost.DMatrix(TABLE[:300], SCORE[:300]), xgboost.DMatrix(TABLE[300:], SCORE[300:])
    booster = xgboost.train(
        {"max_depth": 3, "eta": 0.6, "nthread": 1},
        training,
        40,
        [(held, "held")],
        early_stopping_rounds=3,
        verbose_eval=False,
    )
    assert booster.best_iteration + 1 < booster.num_boosted_rounds()
    booster.save_model(cases.folder / "early-stopped-native.json")
    native = "early-stopped-native.json"
    cases.add("early-stopped-native", native, exact, refused="was trained with early stopping")
    best = booster.predict(xgboost.DMatrix(rows), iteration_range=(0, booster.best_iteration + 1))
    cases.add("early-stopped-native-best", native, exact, best, parameters={"iterations": "best"})
    cases.add(
        "early-stopped-native-all",
        native,
        exact,
        booster.predict(xgboost.DMatrix(rows)),
        parameters={"iterations": "all"},
    )
    two = booster.predict(xgboost.DMatrix(rows), iteration_range=(0, 2))
    cases.add("early-stopped-native-two", native, exact, two, parameters={"iterations": "2"})

    # Tables of pandas, with categories.
    frame, label = category_frame()
    cases.tables["frame"] = codes(frame)[:60]
    estimator = xgboost.XGBRegressor(
        n_estimators=5,
        max_depth=3,
        enable_categorical=True,
        max_cat_to_onehot=1,
        n_jobs=1,
        tree_method="approx" if version < (2, 0) else "hist",
    )
    estimator.fit(frame, label)
    estimator.save_model(cases.folder / "frame.json")
    expected = estimator.predict(frame[:60])
    names = list(frame)
    cases.add("frame", "frame.json", exact, expected, "frame", columns=described(names, **CATEGORIES))
    if version >= (3, 1):
        # The package cuts texts that are not ASCII in wrong places.
        cases.add("frame-itself", "frame.json", exact, refused='"town": XGBoost wrote its categories incompletely')
        swapped = described(names, **CATEGORIES | {"town": ["Aarau", "Zug", "Genève", "never"]})
        cases.add(
            "frame-swapped",
            "frame.json",
            exact,
            columns=swapped,
            refused='"town": the manifest lists the categories ["Aarau", "Zug",',
        )
        ascii = frame.assign(town=frame.town.cat.rename_categories({"Genève": "Geneva"}))
        named = described(names, **CATEGORIES | {"town": ["Zug", "Aarau", "Geneva", "never"]})
        estimator.fit(ascii, label)
        for suffix in ["json", "ubj"]:
            estimator.save_model(cases.folder / f"frame-ascii.{suffix}")
            cases.add(f"frame-ascii-{suffix}", f"frame-ascii.{suffix}", exact, expected, "frame", signature=named)
        cases.add(
            "frame-ascii-swapped",
            "frame-ascii.ubj",
            exact,
            columns=swapped,
            refused='["Aarau", "Zug", "Genève", "never"], the model ["Zug", "Aarau", "Geneva", "never"]',
        )
    cases.add("frame-short", "frame.json", exact, columns=described(names[:2], **CATEGORIES), refused='"rooms"')
    cases.add(
        "frame-renamed",
        "frame.json",
        exact,
        columns=described(["town", "area", "rooms"], **CATEGORIES),
        refused='"area" is "size"',
    )

    # Data that people have.
    for name, loader, make in [
        ("cancer", datasets.load_breast_cancer, xgboost.XGBClassifier),
        ("wine", datasets.load_wine, xgboost.XGBClassifier),
        ("diabetes", datasets.load_diabetes, xgboost.XGBRegressor),
    ]:
        data, target, shown = real(loader)
        cases.tables[name] = shown
        estimator = make(n_estimators=6, max_depth=3, n_jobs=1).fit(data, target)
        estimator.save_model(cases.folder / f"{name}.ubj")
        answers = estimator.predict(shown) if name == "diabetes" else estimator.predict_proba(shown)
        answers = answers[:, 1] if name == "cancer" else answers
        cases.add(name, f"{name}.ubj", exact if name == "diabetes" else linked, answers, name)

    if version == (1, 7):
        booster.save_model(cases.folder / "old-binary.deprecated")
        cases.add("old-binary", "old-binary.deprecated", exact, refused="XGBoost's old binary format")
    booster.dump_model(str(cases.folder / "dumped.json"), dump_format="json")
    cases.add("dumped", "dumped.json", exact, refused="save_model")
    cases.write()


def make_lightgbm():
    import lightgbm

    version = tuple(map(int, lightgbm.__version__.split(".")[:2]))
    rows = hostile_rows(infinite=True)
    cases = Cases("lightgbm", {"hostile": rows})
    bound = "relative 1e-12"

    def thresholds(booster):
        trees = booster.trees_to_dataframe()
        trees = trees[trees.decision_type == "<="] if "decision_type" in trees else trees[:0]
        return [(int(name[7:]), float(value)) for name, value in zip(trees.split_feature, trees.threshold)]

    def train(name, label, rounds=5, group=None, weight=None, fobj=None, **parameters):
        categorical = parameters.pop("categorical_feature", [])
        data = lightgbm.Dataset(TABLE, label, group=group, weight=weight, categorical_feature=categorical)
        parameters = {
            "num_leaves": 8,
            "verbose": -1,
            "seed": 3,
            "num_threads": 1,
            "min_data_per_group": 5,
            **parameters,
        }
        if fobj is not None and version < (4, 0):
            booster = lightgbm.train(parameters, data, rounds, fobj=fobj)
        else:
            booster = lightgbm.train(parameters | ({"objective": fobj} if fobj else {}), data, rounds)
        booster.save_model(cases.folder / f"{name}.txt")
        return lightgbm.Booster(model_file=str(cases.folder / f"{name}.txt"))

    def add(name, label, request=None, ask=None, **parameters):
        booster = train(name, label, **parameters)
        more = on_thresholds(thresholds(booster), rows[:20], single=False)
        expected = booster.predict(np.concatenate([rows, more]) if len(more) else rows, **(ask or {}))
        case = {"request": request} if request else {}
        if name in EXPLAINED:
            case["contributions"] = nested(booster.predict(rows[:60], pred_contrib=True, **(ask or {})))
        cases.add(name, f"{name}.txt", bound, expected, more=more, **case)
        return booster

    for objective in ["regression", "regression_l1", "huber", "fair", "quantile"]:
        add(objective, SCORE, objective=objective)
    for objective in ["regression", "regression_l1", "quantile", "fair"]:
        add(f"{objective}-sqrt", SCORE, objective=objective, reg_sqrt=True)
    for objective in ["poisson", "gamma", "tweedie", "mape"]:
        add(objective, POSITIVE, objective=objective)
    add("binary", BINARY, objective="binary")
    add("binary-sigmoid", BINARY, objective="binary", sigmoid=2.5, is_unbalance=True)
    add("multiclass", CLASSES, objective="multiclass", num_class=3)
    add("multiclassova", CLASSES, objective="multiclassova", num_class=3, sigmoid=0.7)
    shares = 1 / (1 + np.exp(-SCORE))
    add("cross_entropy", shares, objective="cross_entropy")
    add("cross_entropy_lambda", shares, objective="cross_entropy_lambda")
    add("cross_entropy_lambda-weights", shares, objective="cross_entropy_lambda", weight=np.linspace(0.5, 2, N))
    add("lambdarank", GRADES, objective="lambdarank", group=GROUPS)
    add("rank_xendcg", GRADES, objective="rank_xendcg", group=GROUPS)
    squared = lambda predictions, data: (predictions - data.get_label(), np.ones(len(predictions)))
    add("custom", SCORE, fobj=squared)

    forest = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}
    add("rf", SCORE, objective="regression", **forest)
    add("rf-binary", BINARY, objective="binary", **forest)
    add("rf-multiclass", CLASSES, objective="multiclass", num_class=3, **forest)
    add("rf-poisson", POSITIVE, objective="poisson", **forest)
    add("dart", SCORE, objective="regression", boosting="dart", drop_rate=0.5, rounds=8)
    add("goss", SCORE, objective="regression", boosting="goss", learning_rate=0.5)
    add("extra-trees", SCORE, objective="regression", extra_trees=True)
    add("zero-missing", SCORE, objective="regression", zero_as_missing=True)
    add("no-missing", SCORE, objective="regression", use_missing=False)
    booster = add("categories", SCORE, objective="regression", categorical_feature=[KIND, MANY])
    if version >= (4, 0):
        cases.tables["thousand"] = thousand = thousand_rows()
        contributions = np.round(booster.predict(thousand, pred_contrib=True), 8)
        cases.add(
            "thousand",
            "categories.txt",
            bound,
            booster.predict(thousand),
            "thousand",
            contributions=nested(contributions),
        )
    add(
        "categories-one",
        SCORE,
        objective="regression",
        categorical_feature=[KIND, MANY],
        max_cat_to_onehot=200,
        rounds=8,
    )
    add("categories-no-missing", SCORE, objective="regression", categorical_feature=[KIND, MANY], use_missing=False)
    add("linear-tree", SCORE, objective="regression", linear_tree=True, linear_lambda=0.01)
    add("linear-tree-binary", BINARY, objective="binary", linear_tree=True)
    add("leaves-only", np.ones(N), objective="regression", rounds=2)
    add(
        "range",
        CLASSES,
        objective="multiclass",
        num_class=3,
        rounds=6,
        ask={"start_iteration": 1, "num_iteration": 3},
        request={"iteration_begin": "1", "iteration_end": "4"},
    )
    add(
        "range-rf",
        SCORE,
        objective="regression",
        rounds=6,
        ask={"start_iteration": 1, "num_iteration": 3},
        request={"start_iteration": "1", "num_iteration": "3"},
        **forest,
    )

    # Early stopping: the file holds the best iterations alone.
    estimator = lightgbm.LGBMRegressor(n_estimators=60, num_leaves=8, learning_rate=0.6, n_jobs=1, verbose=-1)
    estimator.fit(
        TABLE[:300],
        SCORE[:300],
        eval_set=[(TABLE[300:], SCORE[300:])],
        callbacks=[lightgbm.early_stopping(3, verbose=False)],
    )
    assert estimator.best_iteration_ < 60
    estimator.booster_.save_model(cases.folder / "early-stopped.txt")
    cases.add("early-stopped", "early-stopped.txt", bound, estimator.predict(rows))

    frame, label = category_frame()
    cases.tables["frame"] = codes(frame)[:60]
    estimator = lightgbm.LGBMRegressor(n_estimators=5, num_leaves=8, n_jobs=1, verbose=-1, min_data_per_group=5).fit(
        frame, label
    )
    estimator.booster_.save_model(cases.folder / "frame.txt")
    expected, names = estimator.predict(frame[:60]), list(frame)
    cases.add("frame", "frame.txt", bound, expected, "frame", columns=described(names, **CATEGORIES))
    cases.add("frame-itself", "frame.txt", bound, expected, "frame", signature=described(names, **CATEGORIES))
    swapped = CATEGORIES | {"rooms": ["10", "3", "7"]}
    cases.add(
        "frame-swapped",
        "frame.txt",
        bound,
        columns=described(names, **swapped),
        refused='"rooms": the manifest lists the categories ["10", "3", "7"], the model ["3", "7", "10"]',
    )
    ordered = frame.assign(town=frame.town.cat.as_ordered())
    estimator = lightgbm.LGBMRegressor(n_estimators=5, num_leaves=8, n_jobs=1, verbose=-1, min_data_per_group=5).fit(
        ordered, label
    )
    estimator.booster_.save_model(cases.folder / "frame-ordered.txt")
    cases.add("frame-ordered", "frame-ordered.txt", bound, refused="pandas_categorical")
    cases.add(
        "frame-ordered-described",
        "frame-ordered.txt",
        bound,
        estimator.predict(ordered[:60]),
        "frame",
        columns=described(names, **CATEGORIES),
    )

    for name, loader, make in [
        ("cancer", datasets.load_breast_cancer, lightgbm.LGBMClassifier),
        ("wine", datasets.load_wine, lightgbm.LGBMClassifier),
        ("diabetes", datasets.load_diabetes, lightgbm.LGBMRegressor),
    ]:
        data, target, shown = real(loader)
        cases.tables[name] = shown
        estimator = make(n_estimators=6, num_leaves=8, n_jobs=1, verbose=-1).fit(data, target)
        estimator.booster_.save_model(cases.folder / f"{name}.txt")
        answers = estimator.predict(shown) if name == "diabetes" else estimator.predict_proba(shown)
        cases.add(name, f"{name}.txt", bound, answers[:, 1] if name == "cancer" else answers, name)
    (cases.folder / "dumped.json").write_text(json.dumps(estimator.booster_.dump_model(num_iteration=1)))
    cases.add("dumped", "dumped.json", bound, refused="save_model")
    cases.write()


def make_catboost():
    import catboost

    rows = hostile_rows(infinite=True)
    cases = Cases("catboost", {"hostile": rows})
    bound = "relative 1e-9"
    common = {
        "iterations": 5,
        "depth": 3,
        "verbose": 0,
        "thread_count": 1,
        "random_seed": 3,
        "allow_writing_files": False,
    }

    def save(name, model):
        model.save_model(str(cases.folder / f"{name}.json"), format="json")
        return f"{name}.json"

    def borders(file):
        features = json.loads((cases.folder / file).read_text())["features_info"]["float_features"]
        return [(feature["flat_feature_index"], border) for feature in features for border in feature["borders"] or []]

    def answer(model, data, **ask):
        if isinstance(model, catboost.CatBoostClassifier):
            answers = model.predict_proba(data, **ask)
            return (
                answers[:, 1]
                if model.get_all_params()["loss_function"].split(":")[0] in ("Logloss", "CrossEntropy", "Focal")
                else answers
            )
        return model.predict(data, **ask)

    def add(name, make, label, data=TABLE, request=None, ask=None, fit=None, **parameters):
        model = make(**common | parameters).fit(data, label, **(fit or {}))
        file = save(name, model)
        more = on_thresholds(borders(file), rows[:20], single=True)
        expected = answer(model, np.concatenate([rows, more]) if len(more) else rows, **(ask or {}))
        cases.add(name, file, bound, expected, more=more, **({"request": request} if request else {}))
        return model

    regressor, classifier, ranker = catboost.CatBoostRegressor, catboost.CatBoostClassifier, catboost.CatBoostRanker
    for loss in [
        "RMSE",
        "MAE",
        "Quantile:alpha=0.8",
        "MAPE",
        "Lq:q=3",
        "Huber:delta=1",
        "Expectile:alpha=0.3",
        "LogCosh",
        "RMSEWithUncertainty",
    ]:
        add(loss.split(":")[0].lower(), regressor, SCORE, loss_function=loss)
    for loss in ["Poisson", "Tweedie:variance_power=1.5", "LogLinQuantile", "Cox"]:
        add(loss.split(":")[0].lower(), regressor, POSITIVE, loss_function=loss)
    limits = np.column_stack([POSITIVE, np.where(BINARY, POSITIVE, -1)])
    add("survivalaft", regressor, limits, loss_function="SurvivalAft")
    add("multiquantile", regressor, SCORE, loss_function="MultiQuantile:alpha=0.1,0.5,0.9")
    targets = np.column_stack([SCORE, -SCORE, np.nan_to_num(TABLE[:, 1])])
    add("multirmse", regressor, targets, loss_function="MultiRMSE")
    add("logloss", classifier, BINARY)
    add("crossentropy", classifier, 1 / (1 + np.exp(-SCORE)), loss_function="CrossEntropy")
    add("focal", classifier, BINARY, loss_function="Focal:focal_alpha=0.5;focal_gamma=2")
    add("multiclass", classifier, CLASSES, loss_function="MultiClass")
    add("multiclassonevsall", classifier, CLASSES, loss_function="MultiClassOneVsAll")
    add("multilogloss", classifier, (targets > 0).astype(int), loss_function="MultiLogloss")
    add("multicrossentropy", classifier, 1 / (1 + np.exp(-targets)), loss_function="MultiCrossEntropy")
    groups = {"group_id": np.repeat(np.arange(len(GROUPS)), GROUPS)}
    for loss in ["YetiRank", "QueryRMSE", "QuerySoftMax", "PairLogit"]:
        add(loss.lower(), ranker, GRADES, fit=groups, loss_function=loss)
    for policy in ["Depthwise", "Lossguide"]:
        add(policy.lower(), regressor, SCORE, grow_policy=policy)
        add(f"{policy.lower()}-multiclass", classifier, CLASSES, grow_policy=policy)
    add("nan-max", regressor, SCORE, nan_mode="Max")
    add("nan-none", regressor, SCORE, data=np.nan_to_num(TABLE))
    add(
        "range",
        regressor,
        SCORE,
        ask={"ntree_start": 1, "ntree_end": 4},
        request={"ntree_start": "1", "ntree_end": "4"},
    )
    add("range-first", classifier, CLASSES, ask={"ntree_end": 2}, request={"iteration_end": "2"})
    stopped = {"eval_set": (TABLE[300:], SCORE[300:]), "early_stopping_rounds": 3}
    model = add(
        "early-stopped", regressor, SCORE[:300], data=TABLE[:300], fit=stopped, iterations=60, learning_rate=0.9
    )
    assert model.tree_count_ < 60

    # Categories: texts by hash, and statistics of them.
    frame, label = category_frame()
    frame["town"] = frame.town.astype(object).where(frame.town.notna(), "unknown")
    frame["rooms"] = frame.rooms.astype(int)
    rng = np.random.default_rng(7)
    frame["street"] = [
        f"{name} {number}"
        for name, number in zip(rng.choice(["Am Bach", "Rue du Général-Dufour", "x"], N), rng.integers(0, 30, N))
    ]
    streets = sorted(set(frame.street))
    lists = {
        "town": ["Zug", "Aarau", "Genève", "unknown", "elsewhere"],
        "street": streets + ["a street that training has not seen"],
    }
    label = label + (frame.street.map(len) % 5) * 0.7
    texts = ["town", "rooms", "street"]
    shown = frame[:50].copy()
    shown.loc[0:3, "town"] = "elsewhere"
    shown.loc[2:5, "street"] = lists["street"][-1]
    shown.loc[4:6, "rooms"] = [11, 0, -3]
    index = {name: {text: at for at, text in enumerate(values)} for name, values in lists.items()}
    cases.tables["frame"] = np.column_stack(
        [shown[name].map(index[name]) if name in index else shown[name] for name in shown]
    ).astype(float)
    columns = described(list(frame), **lists)
    binary = (label > np.median(label)).astype(int)
    classes = np.digitize(label, np.quantile(label, [0.3, 0.7]))
    kinds = lambda borders: [f"Borders{borders}", f"Buckets{borders}", "BinarizedTargetMeanValue", "Counter"]
    every = {"simple_ctr": kinds(""), "combinations_ctr": kinds(""), "max_ctr_complexity": 3}
    bordered = {
        "simple_ctr": kinds(":TargetBorderCount=3"),
        "combinations_ctr": kinds(":TargetBorderCount=2"),
        "max_ctr_complexity": 3,
    }
    for name, make, target, parameters in [
        ("one-hot", regressor, label, {"one_hot_max_size": 200, "iterations": 12}),
        ("one-hot-lossguide", regressor, label, {"one_hot_max_size": 200, "grow_policy": "Lossguide"}),
        ("ctrs", classifier, binary, {"iterations": 10}),
        ("ctrs-regression", regressor, label, {"iterations": 10}),
        ("ctrs-multiclass", classifier, classes, {"iterations": 10}),
        ("ctrs-every", classifier, binary, {"iterations": 20, "depth": 4, **every}),
        ("ctrs-every-regression", regressor, label, {"iterations": 20, "depth": 4, **bordered}),
        ("ctrs-every-multiclass", classifier, classes, {"iterations": 10, "one_hot_max_size": 5, **every}),
        ("ctrs-lossguide", classifier, binary, {"iterations": 10, "grow_policy": "Lossguide"}),
    ]:
        model = make(**common | parameters, cat_features=texts).fit(frame, target)
        cases.add(name, save(name, model), bound, answer(model, shown), "frame", columns=columns)
    cases.add(
        "undescribed",
        "ctrs.json",
        bound,
        refused='feature "town" is categorical, and CatBoost\'s file does not hold the categories',
    )

    for name, loader, make in [
        ("cancer", datasets.load_breast_cancer, classifier),
        ("wine", datasets.load_wine, classifier),
        ("diabetes", datasets.load_diabetes, regressor),
    ]:
        data, target, shown = real(loader)
        cases.tables[name] = shown
        model = make(**common | {"iterations": 6}).fit(data, target)
        cases.add(name, save(name, model), bound, answer(model, shown), name)
    model.save_model(str(cases.folder / "binary.cbm"))
    cases.add("binary", "binary.cbm", bound, refused='format="json"')
    words = pd.DataFrame({"x": TABLE[:, 0], "words": ["one two"] * 250 + ["three two one"] * 250})
    model = catboost.CatBoostClassifier(**common | {"iterations": 2}, text_features=["words"]).fit(words, BINARY)
    model.save_model(str(cases.folder / "words.cbm"))
    cases.add("words", "words.cbm", bound, refused="a CatBoost .cbm file is not read here")
    cases.write()


if __name__ == "__main__":
    {"xgboost": make_xgboost, "lightgbm": make_lightgbm, "catboost": make_catboost}[sys.argv[1]]()
