"""DataComp's 38 evaluation sets: names, main metrics, and the folders that hold them.

Source: mlfoundations/datacomp (arXiv 2304.14108), tasklist.yml, download_evalsets.py. Its list has
FairFace and UTKFace too, which have no main metric and are no part of the mean.
"""

from pathlib import Path

# By DataComp's key: (name, main metric).
SETS: dict[str, tuple[str, str]] = {
    "vtab/caltech101": ("Caltech-101", "mean_per_class_recall"),
    "cifar10": ("CIFAR-10", "acc1"),
    "vtab/cifar100": ("CIFAR-100", "acc1"),
    "vtab/clevr_count_all": ("CLEVR Counts", "acc1"),
    "vtab/clevr_closest_object_distance": ("CLEVR Distance", "acc1"),
    "country211": ("Country211", "acc1"),
    "vtab/dtd": ("Describable Textures", "acc1"),
    "vtab/eurosat": ("EuroSAT", "acc1"),
    "fgvc_aircraft": ("FGVC Aircraft", "mean_per_class_recall"),
    "food101": ("Food-101", "acc1"),
    "gtsrb": ("GTSRB", "acc1"),
    "imagenet1k": ("ImageNet 1k", "acc1"),
    "imagenet_sketch": ("ImageNet Sketch", "acc1"),
    "imagenetv2": ("ImageNet v2", "acc1"),
    "imagenet-a": ("ImageNet-A", "acc1"),
    "imagenet-o": ("ImageNet-O", "acc1"),
    "imagenet-r": ("ImageNet-R", "acc1"),
    "vtab/kitti_closest_vehicle_distance": ("KITTI Vehicle Distance", "acc1"),
    "mnist": ("MNIST", "acc1"),
    "objectnet": ("ObjectNet", "acc1"),
    "vtab/flowers": ("Oxford Flowers-102", "mean_per_class_recall"),
    "vtab/pets": ("Oxford-IIIT Pet", "mean_per_class_recall"),
    "voc2007": ("Pascal VOC 2007", "acc1"),
    "vtab/pcam": ("PatchCamelyon", "acc1"),
    "renderedsst2": ("Rendered SST2", "acc1"),
    "vtab/resisc45": ("RESISC45", "acc1"),
    "cars": ("Stanford Cars", "acc1"),
    "stl10": ("STL-10", "acc1"),
    "sun397": ("SUN397", "acc1"),
    "vtab/svhn": ("SVHN", "acc1"),
    "retrieval/flickr30k": ("Flickr", "mean_recall@1"),
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": ("MSCOCO", "mean_recall@1"),
    "misc/winogavil": ("WinoGAViL", "jaccard_score_10-12"),
    "wilds/iwildcam": ("iWildCam", "F1-macro_all"),
    "wilds/camelyon17": ("Camelyon17", "acc1"),
    "wilds/fmow": ("FMoW", "acc_worst_region"),
    "fairness/dollar_street": ("Dollar Street", "acc_top5_wg"),
    "fairness/geode": ("GeoDE", "acc_wg"),
}
# clip-benchmark's names of sets, where they differ from DataComp's.
_OTHER_NAMES = {
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": ("mscoco_captions",),
    "vtab/cifar100": ("cifar100",),
    "cifar10": ("vtab/cifar10",),
}


def find_sets(directory: Path) -> dict[str, Path]:
    """The folder of each set that is there, by key: wds_NAME_test or wds_NAME with `-` for `/`, as
    both projects write them; of a key with a folder its last part alone too."""
    found = {}
    for key in SETS:
        names = [key, key.rpartition("/")[2], *_OTHER_NAMES.get(key, ())]
        folders = [
            directory / f"{before}{name.replace('/', '-')}{after}"
            for name in dict.fromkeys(names)
            for before, after in (("wds_", "_test"), ("wds_", ""), ("", ""))
        ]
        there = [folder for folder in folders if folder.is_dir()]
        if there:
            found[key] = there[0]
    return found
