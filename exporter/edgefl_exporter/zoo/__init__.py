"""Small models people start from: `edgefl export zoo:NAME`."""

from __future__ import annotations

from typing import Any

from edgefl_exporter.zoo import attention, classifiers, equilibrium, mobile, recurrent, residual, segmentation, sensors
from edgefl_exporter.zoo.entry import Entry

__all__ = ["ZOO", "Entry"]

_FEDAVG = "McMahan et al. 2016, arXiv:1602.05629"
_FEDMRL = "Yi et al. 2024, arXiv:2406.00488"
_DEQ = "Bai, Kolter, Koltun 2019, arXiv:1909.01377; block: edgefl's own"
_RESNET = "He et al. 2015, arXiv:1512.03385"
_GROUP_NORM = f"{_RESNET}; Wu, He 2018, arXiv:1803.08494"
_VGG = "Simonyan, Zisserman 2014, arXiv:1409.1556"
_MOBILE = "Sandler et al. 2018, arXiv:1801.04381"
_TINY = "Banbury et al. 2021, arXiv:2106.07597"

PIXELS = (0.0, 1.0)

ZOO: dict[str, Entry] = {
    "digits": Entry(classifiers.digits, "edgefl's own", range=PIXELS),
    "mnist-2nn": Entry(classifiers.mnist_2nn, _FEDAVG, range=PIXELS),
    "mnist-cnn": Entry(classifiers.mnist_cnn, _FEDAVG, range=PIXELS),
    "mnist-cnn-gn": Entry(classifiers.mnist_cnn_gn, "edgefl's own; Wu, He 2018, arXiv:1803.08494", range=PIXELS),
    "mnist-resnet8": Entry(residual.mnist_resnet8, _RESNET, range=PIXELS),
    "lenet5": Entry(classifiers.lenet5, "LeCun et al. 1998, doi:10.1109/5.726791", range=PIXELS),
    "resnet8": Entry(residual.resnet8, _RESNET, range=PIXELS),
    "resnet8-gn": Entry(residual.resnet8_gn, _GROUP_NORM, range=PIXELS),
    "resnet20": Entry(residual.resnet20, _RESNET, range=PIXELS),
    "resnet20-gn": Entry(residual.resnet20_gn, _GROUP_NORM, range=PIXELS),
    "wrn-16-1": Entry(residual.wrn_16_1, "Zagoruyko, Komodakis 2016, arXiv:1605.07146", range=PIXELS),
    "vgg11": Entry(classifiers.vgg11, _VGG, range=PIXELS),
    "vgg11-small": Entry(classifiers.vgg11_small, _VGG, range=PIXELS),
    "mobilenetv2": Entry(mobile.mobilenetv2, _MOBILE, range=PIXELS),
    "mobilenetv2-small": Entry(mobile.mobilenetv2_small, _MOBILE, range=PIXELS),
    "mobilenetv3": Entry(mobile.mobilenetv3, "Howard et al. 2019, arXiv:1905.02244", range=PIXELS),
    "convnext": Entry(mobile.convnext, "Liu et al. 2022, arXiv:2201.03545", range=PIXELS),
    "vit": Entry(attention.vit, "Dosovitskiy et al. 2020, arXiv:2010.11929", range=PIXELS),
    "cnn1": Entry(classifiers.cnn1, _FEDMRL, range=PIXELS),
    "cnn2": Entry(classifiers.cnn2, _FEDMRL, range=PIXELS),
    "cnn3": Entry(classifiers.cnn3, _FEDMRL, range=PIXELS),
    "cnn4": Entry(classifiers.cnn4, _FEDMRL, range=PIXELS),
    "cnn5": Entry(classifiers.cnn5, _FEDMRL, range=PIXELS),
    "deq-digits": Entry(equilibrium.deq_digits, _DEQ, range=PIXELS),
    "deq-mlp": Entry(equilibrium.deq_mlp, _DEQ),
    "deq-conv": Entry(equilibrium.deq_conv, _DEQ, range=PIXELS),
    "deq-conv-cifar": Entry(equilibrium.deq_conv_cifar, _DEQ, range=PIXELS),
    "kws": Entry(sensors.kws, f"Zhang et al. 2017, arXiv:1711.07128; {_TINY}"),
    "kws-1d": Entry(sensors.kws_1d, "Choi et al. 2019, arXiv:1904.03814", range=(-1.0, 1.0)),
    "char-lstm": Entry(recurrent.char_lstm, _FEDAVG, loss="next_token"),
    "unet": Entry(segmentation.unet, "Ronneberger et al. 2015, arXiv:1505.04597", range=PIXELS),
    "tabular": Entry(sensors.tabular, "Guo, Berkhahn 2016, arXiv:1604.06737"),
    "autoencoder": Entry(sensors.autoencoder, _TINY, loss="mse"),
    "regression": Entry(sensors.regression, "edgefl's own", loss="mse"),
}


def described() -> list[dict[str, Any]]:
    """What a person chooses by, of which `catalogue.json` is a copy: each model's name, parameters, input [...], loss,
    what it is and where it is from."""
    rows = []
    for name, entry in ZOO.items():
        module, example = entry.make()
        rows.append(
            {
                "name": name,
                "parameters": sum(p.numel() for p in module.parameters()),
                "input": list(example.shape[1:]),
                "loss": entry.loss,
                "about": entry.about,
                "reference": entry.reference,
            }
        )
    return rows
