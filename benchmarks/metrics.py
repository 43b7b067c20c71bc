"""Cases of metrics: exact areas beside torchmetrics and scikit-learn, and a batch of an update."""

from importlib.util import find_spec

import torch

import imbloss
from benchmarks.cases import Call, Case, Provider


def _values(function: Provider, *inputs: torch.Tensor) -> Call:
    return lambda: function(*inputs)


def _stacked(areas) -> torch.Tensor:
    return torch.stack([torch.as_tensor(area, dtype=torch.float64) for area in areas])


def ours(scores, target):
    from imbloss.metrics import auroc_and_average_precision

    return _stacked(auroc_and_average_precision(scores, target))


def of_torchmetrics(scores, target):
    from torchmetrics.functional import classification as tm

    if scores.dim() == 1:
        areas = tm.binary_auroc(scores, target), tm.binary_average_precision(scores, target)
        return _stacked(areas).unsqueeze(1)
    keywords = {"num_classes": scores.shape[1], "average": None}
    return _stacked(
        [tm.multiclass_auroc(scores, target, **keywords), tm.multiclass_average_precision(scores, target, **keywords)]
    )


def of_scikit_learn(scores, target):
    from sklearn.metrics import average_precision_score, roc_auc_score

    if scores.dim() == 1:
        return _stacked([roc_auc_score(target, scores), average_precision_score(target, scores)]).unsqueeze(1)
    wide = scores.double()
    wide = (wide / wide.sum(1, keepdim=True)).numpy()  # it insists
    areas = (
        roc_auc_score(target, wide, multi_class="ovr", average=None),
        average_precision_score(torch.nn.functional.one_hot(target), scores, average=None),
    )
    return _stacked(areas)


def areas_case(rows: int, classes: int) -> Case:
    def inputs():
        if classes == 1:
            return torch.rand(rows), (torch.rand(rows) < 0.05).long()
        return torch.randn(rows, classes).softmax(1), torch.randint(classes, (rows,))

    providers: dict[str, Provider] = {"imbloss": ours, "torchmetrics": of_torchmetrics}
    if find_spec("sklearn"):
        providers["scikit-learn"] = of_scikit_learn
    return Case(
        "AUROC and AP", f"{rows}x{classes} exact", inputs, providers, work=_values, section="metrics", copies=False,
        gradient=False,
    )  # fmt: skip


def update_case(rows: int, classes: int, curves: str) -> Case:
    """A batch; the state is emptied before it grows."""

    def updater(make) -> Provider:
        metrics = []

        def update(scores, target):
            if not metrics:
                metrics.append(make())
            if metrics[0]._update_count >= 100:
                metrics[0].reset()
            metrics[0].update(scores, target)

        return update

    def of_torchmetrics():
        from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix

        if curves != "none":  # keeps the scores too, or counts at thresholds
            return MulticlassAUROC(classes, thresholds=None if curves == "exact" else 100, validate_args=False)
        return MulticlassConfusionMatrix(classes, validate_args=False)

    def inputs():
        return torch.randn(rows, classes).softmax(1), torch.randint(classes, (rows,))

    providers = {
        "imbloss": updater(lambda: imbloss.ImbalanceReport(classes, scores="probabilities", curves=curves)),
        "torchmetrics": updater(of_torchmetrics),
    }
    return Case(
        "ImbalanceReport.update", f"{rows}x{classes} curves {curves}", inputs, providers, work=_values,
        section="metrics", copies=False, gradient=False,
    )  # fmt: skip


METRICS = [
    areas_case(100_000, 20),
    areas_case(5_000_000, 1),
    update_case(1024, 100, "exact"),
    update_case(1024, 100, "histogram"),
    update_case(1024, 100, "none"),
]
