"""Words that people use in captions for the categories of COCO, beside the category's own name."""

from __future__ import annotations

SYNONYMS: dict[str, tuple[str, ...]] = {
    name: tuple(words.split(", "))
    for name, words in {
        "person": "man, woman, boy, girl, child, kid, baby, toddler, guy, lady, gentleman, player, surfer, skier, "
        "snowboarder, skateboarder, rider, skater, cyclist, driver, worker, chef, bride, groom, people",
        "bicycle": "bike",
        "car": "automobile, suv, sedan, taxi, cab, van, jeep",
        "motorcycle": "motorbike, scooter, moped",
        "airplane": "plane, jet, aircraft, aeroplane, airliner, jetliner",
        "bus": "double decker",
        "train": "locomotive, tram",
        "truck": "pickup, lorry, firetruck",
        "boat": "ship, sailboat, canoe, kayak, yacht, ferry",
        "traffic light": "stoplight, traffic signal",
        "fire hydrant": "hydrant",
        "bird": "duck, goose, seagull, gull, parrot, pigeon, owl, eagle, hawk, chicken, rooster, swan, pelican, crow",
        "cat": "kitten, kitty",
        "dog": "puppy, pup, doggy, poodle, terrier, bulldog, labrador, retriever, dachshund, husky, corgi",
        "horse": "pony, foal, colt, stallion, mare",
        "sheep": "lamb, ram, ewe",
        "cow": "bull, calf, ox, cattle",
        "elephant": "calf",
        "bear": "polar bear, grizzly bear, black bear, brown bear, cub",
        "backpack": "rucksack, knapsack",
        "umbrella": "parasol",
        "handbag": "purse, bag",
        "tie": "necktie, bow tie",
        "suitcase": "luggage, bag",
        "frisbee": "disc",
        "skis": "ski",
        "sports ball": "ball, baseball, football, soccer ball, tennis ball, basketball, volleyball",
        "baseball bat": "bat",
        "baseball glove": "glove, mitt",
        "surfboard": "surf board, board",
        "skateboard": "skate board, board",
        "snowboard": "snow board, board",
        "tennis racket": "racket, racquet, tennis racquet",
        "wine glass": "glass",
        "cup": "mug, teacup",
        "sandwich": "burger, hamburger, sub",
        "hot dog": "hotdog",
        "donut": "doughnut",
        "couch": "sofa",
        "chair": "armchair, stool",
        "potted plant": "plant, houseplant",
        "dining table": "table, desk",
        "toilet": "toilet bowl",
        "tv": "television, tv screen, monitor, screen",
        "laptop": "laptop computer, notebook, computer",
        "mouse": "computer mouse",
        "remote": "remote control, controller",
        "cell phone": "phone, cellphone, smartphone, mobile phone, iphone",
        "microwave": "microwave oven",
        "oven": "stove",
        "refrigerator": "fridge",
        "vase": "pot",
        "teddy bear": "teddy, stuffed animal, stuffed bear, bear",
        "hair drier": "hair dryer, blow dryer",
    }.items()
}


def words_for(category: str) -> tuple[str, ...]:
    """Return a category's name and its synonyms."""
    return (category, *SYNONYMS.get(category.casefold(), ()))
