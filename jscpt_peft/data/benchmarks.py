"""The paper's benchmarks as facts, with no code that reads them.

Office-Home and MiniDomainNet are several tasks each (their domains); of the ten data sets of few-shot learning each is
one task.
"""

from __future__ import annotations

from pathlib import Path

from jscpt_peft.data.benchmark import Benchmark, HubArchive, HubTable


def _coop(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test}


def _few_shot(name: str, **facts) -> Benchmark:
    return Benchmark(name=name, default_shots=5, **facts)


OFFICIAL = {"train": "train", "test": "test"}
POOLED = {"train": "pool", "test": "pool"}
POOLED_WITH_VALIDATION = {"train": "pool", "validation": "pool", "test": "pool"}

# DomainNet's classes of which Dassl's `splits_mini` consists.
MINI_CLASSES = tuple(Path(__file__).with_name("domainnet126_classes.txt").read_text(encoding="utf-8").split())

OFFICE_HOME = Benchmark(
    name="office_home",
    num_classes=65,
    hub=(
        HubTable(
            "flwrlabs/office-home",
            revision="d430d44779e929b335be368ab3456484e5de36bb",
            splits={"train": "pool"},
            rows={"train": 15588},
            domain="domain",
        ),
    ),
    folder="office_home",
    template="a photo of {}",
    counts={"art": 2427, "clipart": 4365, "product": 4439, "real_world": 4357},
    expected=("Postit Notes", "ToothBrush", "TV", "Push Pin"),
    domains={"art": "Art", "clipart": "Clipart", "product": "Product", "real_world": "Real World"},
    default_fraction=0.1,
)

MINI_DOMAINNET = Benchmark(
    name="mini_domainnet",
    num_classes=126,
    hub=(
        HubTable(
            "wltjr1007/DomainNet",
            revision="ee20570ae7a29c51571e55a9a17983f7625295d6",
            splits=OFFICIAL,
            rows={"train": 409832, "test": 176743},
            domain="domain",
            streamed=True,
        ),
    ),
    folder="domainnet",
    template="a photo of {}",
    expected=tuple(name.replace("_", " ") for name in MINI_CLASSES),
    domains={name: name for name in ("clipart", "painting", "real", "sketch")},
    default_fraction=0.01,
)

FEW_SHOT_10 = (
    _few_shot(
        "caltech101",
        num_classes=100,
        hub=(
            HubTable("flwrlabs/caltech101", splits={"train": "pool"}, rows={"train": 8700}, tolerance=0.06),
            HubTable(
                "mteb/Caltech101",
                revision="011e51e5fb01f0c820824734edb7a539ab8e6650",
                splits=POOLED,
                rows={"train": 3060, "test": 6084},
            ),
        ),
        folder="caltech-101",
        images="101_ObjectCategories",
        split_file="split_zhou_Caltech101.json",
        counts=_coop(4128, 1649, 2465),
        renamed={"airplanes": "airplane", "faces": "face", "leopards": "leopard", "motorbikes": "motorbike"},
        dropped=("backgroundgoogle", "background", "faceseasy"),
        expected=("airplane", "face", "leopard", "motorbike"),
    ),
    _few_shot(
        "oxford_pets",
        num_classes=37,
        template="a photo of a {}, a type of pet.",
        hub=(HubTable("timm/oxford-iiit-pet", splits=OFFICIAL, rows={"train": 3680, "test": 3669}),),
        folder="oxford_pets",
        images="images",
        split_file="split_zhou_OxfordPets.json",
        counts=_coop(2944, 736, 3669),
        expected=("Abyssinian", "great pyrenees", "yorkshire terrier"),
    ),
    _few_shot(
        "stanford_cars",
        num_classes=196,
        # Beside these two splits the repository has corrupted copies of one: streamed, they are not downloaded.
        hub=(HubTable("tanganke/stanford_cars", splits=OFFICIAL, rows={"train": 8144, "test": 8041}, streamed=True),),
        folder="stanford_cars",
        split_file="split_zhou_StanfordCars.json",
        counts=_coop(6509, 1635, 8041),
        expected=("2000 AM General Hummer SUV",),
        year_first=True,
    ),
    _few_shot(
        "oxford_flowers",
        num_classes=102,
        template="a photo of a {}, a type of flower.",
        hub=(
            HubTable(
                "dpdl-benchmark/oxford_flowers102",
                splits=POOLED_WITH_VALIDATION,
                rows={"train": 1020, "validation": 1020, "test": 6149},
            ),
        ),
        folder="oxford_flowers",
        images="jpg",
        split_file="split_zhou_OxfordFlowers.json",
        counts=_coop(4093, 1633, 2463),
        expected=("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
    ),
    _few_shot(
        "food101",
        num_classes=101,
        template="a photo of {}, a type of food.",
        hub=(
            HubTable(
                "ethz/food101",
                splits={"train": "pool", "validation": "pool"},
                rows={"train": 75750, "validation": 25250},
            ),
        ),
        folder="food-101",
        images="images",
        split_file="split_zhou_Food101.json",
        counts=_coop(50500, 20200, 30300),
        expected=("apple pie", "baby back ribs", "waffles"),
    ),
    _few_shot(
        "fgvc_aircraft",
        num_classes=100,
        template="a photo of a {}, a type of aircraft.",
        hub=(
            HubTable(
                "mteb/FGVCAircraft",
                revision="3ae0e4e94e37c610c26df758ec3255fa90d80e67",
                splits={**OFFICIAL, "validation": "validation"},
                rows={"train": 3334, "test": 3333},
                label="variant",
            ),
        ),
        folder="fgvc_aircraft",
        images="images",
        counts=_coop(3334, 3333, 3333),
        expected=("707-320", "A340-200", "Yak-42"),
    ),
    _few_shot(
        "sun397",
        num_classes=397,
        hub=(HubTable("tanganke/sun397", splits=OFFICIAL, rows={"train": 19850, "test": 19850}, tolerance=0.01),),
        folder="sun397",
        images="SUN397",
        split_file="split_zhou_SUN397.json",
        counts=_coop(15880, 3970, 19850),
        expected=("abbey", "airplane cabin"),
    ),
    _few_shot(
        "dtd",
        num_classes=47,
        template="{} texture.",
        hub=(HubTable("tanganke/dtd", splits=POOLED, rows={"train": 3760, "test": 1880}),),
        folder="dtd",
        images="images",
        split_file="split_zhou_DescribableTextures.json",
        counts=_coop(2820, 1128, 1692),
        expected=("banded", "chequered", "zigzagged"),
    ),
    _few_shot(
        "eurosat",
        num_classes=10,
        template="a centered satellite photo of {}.",
        hub=(
            HubTable(
                "timm/eurosat-rgb",
                revision="45672726cb506066e5b3f51425158040acc1a985",
                splits=POOLED_WITH_VALIDATION,
                rows={"train": 16200, "validation": 5400, "test": 5400},
            ),
        ),
        folder="eurosat",
        images="2750",
        split_file="split_zhou_EuroSAT.json",
        counts=_coop(13500, 5400, 8100),
        renamed={
            "annualcrop": "Annual Crop Land",
            "forest": "Forest",
            "herbaceousvegetation": "Herbaceous Vegetation Land",
            "highway": "Highway or Road",
            "industrial": "Industrial Buildings",
            "pasture": "Pasture Land",
            "permanentcrop": "Permanent Crop Land",
            "residential": "Residential Buildings",
            "river": "River",
            "sealake": "Sea or Lake",
        },
        expected=(
            "Annual Crop Land",
            "Forest",
            "Herbaceous Vegetation Land",
            "Highway or Road",
            "Industrial Buildings",
            "Pasture Land",
            "Permanent Crop Land",
            "Residential Buildings",
            "River",
            "Sea or Lake",
        ),
    ),
    _few_shot(
        "ucf101",
        num_classes=101,
        template="a photo of a person doing {}.",
        hub=(
            HubArchive(
                "zhengli97/prompt_learning_dataset",
                file="ucf101.zip",
                revision="ceb3112337fb6e1bf71534e355ca5569b63f19a6",
            ),
            HubTable(
                "flwrlabs/ucf101",
                revision="e0618988874f6ffbf90af69fa6dccecb9be3deb3",
                splits=OFFICIAL,
                rows={"train": 1790000, "test": 700000},
                tolerance=0.01,
                streamed=True,
                middle_frame=True,
            ),
        ),
        folder="ucf101",
        images="UCF-101-midframes",
        split_file="split_zhou_UCF101.json",
        counts=_coop(7639, 1898, 3783),
        expected=("Apply Eye Makeup", "Yo Yo"),
        camel_case=True,
    ),
)

BENCHMARKS = {each.name: each for each in (OFFICE_HOME, MINI_DOMAINNET, *FEW_SHOT_10)}
"""Every data set by name."""

TASK_SET_MEMBERS = {"few_shot_10": tuple(each.name for each in FEW_SHOT_10)}
"""Names that stand for several data sets."""
