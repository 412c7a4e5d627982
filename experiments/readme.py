"""The table of measured gains in README.md and README.zh.md, from the JSON under ``results``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convsmith.files import write_json
from experiments.markdown import table

BEGIN, END = "<!-- measured: written by `make docs` from results/ -->", "<!-- end of measured -->"
#: file -> its words for the columns and the rows
WORDS = {
    "README.md": {
        "columns": ["what was done", "network", "measured (95 % interval)"],
        "pruned": "filters pruned to half the latency, ONNX Runtime, 2 images of 224x224",
        "igcv": "IGCV3-D 1.0 in place of MobileNetV2 1.0 (equal MACs), folded, ONNX Runtime, 1 image",
        "int8": "int8, ONNX Runtime, 1 image, {images} photographs, nothing trained",
        "sharper": "second-order head in place of the average, frozen features, {images} digits, cross-validated",
        "explainable": "channels that keep a prediction (median of the {routes} of {images} photographs with a route)",
        "guarded": "adversarial photographs (8/255) caught at 5 % false alarms, attack known",
        "weights": {True: "ImageNet weights", False: "random weights: times only"},
        "time": "time {ratio}",
        "answers": "time {ratio}; file {size:.2f}; same answer {same}",
        "accuracy": "accuracy {gain} points",
        "where": "Time and file are shares of the original's. {machine}, {capability}, one thread for all times, torch "
        "{torch}, ONNX Runtime {onnxruntime}; the first rows are medians with quartiles of `bench latency` and `bench "
        "folded`, the others come from `convsmith demo` ({date}).",
    },
    "README.zh.md": {
        "columns": ["做法", "网络", "实测（95 % 区间）"],
        "pruned": "剪滤波器到一半延迟，ONNX Runtime，2 张 224x224 图片",
        "igcv": "以 IGCV3-D 1.0 代替 MobileNetV2 1.0（乘加数相同），折叠后，ONNX Runtime，1 张图片",
        "int8": "int8，ONNX Runtime，1 张图片，{images} 张照片，未训练",
        "sharper": "以二阶统计分类头代替平均，特征冻结，{images} 个数字，交叉验证",
        "explainable": "保持一张照片预测所需的通道比例（{images} 张中有路径的 {routes} 张的中位数）",
        "guarded": "5 % 误报率下检出的对抗照片（8/255，攻击已知）",
        "weights": {True: "ImageNet 权重", False: "随机权重，只比时间"},
        "time": "时间 {ratio}",
        "answers": "时间 {ratio}；文件 {size:.2f}；答案相同 {same}",
        "accuracy": "准确率 {gain} 点",
        "where": "时间与文件为相对原网络的比例。{machine}，{capability}，计时均为单线程，torch {torch}，ONNX Runtime "
        "{onnxruntime}；前几行是 `bench latency` 与 `bench folded` 的中位数与四分位数，"
        "其余来自 `convsmith demo`（{date}）。",
    },
}


def keep_demo(run: Path, results: Path) -> Path:
    """Write what a finished ``convsmith demo`` measured, with its conditions, under ``results/audits``."""
    result = json.loads((run / "result.json").read_text())
    about = json.loads((run / "environment.json").read_text())
    name = f"demo--{about['machine']}--{about['device']}-{about['capability']}.json"
    chapters = {name: {"number": c["number"], **c["facts"]} for name, c in result["chapters"].items()}
    (results / "audits").mkdir(exist_ok=True)
    return write_json(results / "audits" / name, {"conditions": about, "chapters": chapters})


def measured(results: Path, words: dict[str, Any]) -> str:
    """Return the table with the line of its conditions."""
    rows, real, timed = [], words["weights"][True], words["weights"][False]
    for suite, row, arm in (("latency", "pruned", "filters pruned"), ("folded", "igcv", "IGCV3-D 1.0")):
        for path in sorted((results / "benchmarks").glob(f"{suite}--*avx512.json")):
            for case in json.loads(path.read_text())["cases"]:
                if suite == "folded" and not case["name"].startswith("ONNX Runtime, folded, 224"):
                    continue
                low, middle, high = case["ratios"][arm]
                network = case["name"].split(",")[0] if suite == "latency" else arm
                told = words["time"].format(ratio=f"{middle:.2f} ({low:.2f} – {high:.2f})")
                rows.append([words[row], f"{network} ({timed})", told])
    (path,) = (results / "audits").glob("demo--*avx512.json")
    demo = json.loads(path.read_text())
    chapters, about = demo["chapters"], demo["conditions"]
    network = f"tf_efficientnet_lite0 ({real})"
    leaner, sharper = chapters["leaner"], chapters["sharper"]
    way = next(way for way in leaner["ways"] if way["name"] == "int8")
    interval = "{:.2f} ({:.2f} – {:.2f})".format(*way["time kept"])
    same = "{:.0f} % ({:.0f} – {:.0f})".format(*(100 * value for value in way["agreement"]))
    told = words["answers"].format(ratio=interval, size=way["kB"] / leaner["original, kB"], same=same)
    rows.append([words["int8"].format(images=leaner["images"]), network, told])
    gain = "{:+.1f} ({:+.1f} – {:+.1f})".format(*(100 * sharper[name] for name in ("gain", "low", "high")))
    rows.append([words["sharper"].format(images=sharper["images"]), network, words["accuracy"].format(gain=gain)])
    carried = chapters["explainable"]
    if "critical" in carried:
        share = f"{100 * carried['critical']:.0f} %"
        rows.append([words["explainable"].format(**carried), network, share])
    caught = "{:.0f} % ({:.0f} – {:.0f})".format(*(100 * value for value in chapters["guarded"]["caught"]))
    rows.append([words["guarded"], network, caught])
    where = {**about, **about["versions"], "date": about["created"][:10]}
    return table(words["columns"], rows) + "\n\n" + words["where"].format(**where)


def with_measured(text: str, table: str) -> str:
    """Return a page with the part between its two marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"
