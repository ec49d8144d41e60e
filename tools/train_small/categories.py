"""The 40 category words of the evaluation. Gold members come from CLDR alone: subgroups, or words in the en tags."""

SUBGROUPS = [
    ("水果", ["food-fruit"]), ("蔬菜", ["food-vegetable"]), ("甜点", ["food-sweet"]), ("饮料", ["drink"]),
    ("食物", ["food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet"]),
    ("动物", ["animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine", "animal-bug"]),
    ("鸟类", ["animal-bird"]), ("昆虫", ["animal-bug"]), ("海洋动物", ["animal-marine"]),
    ("哺乳动物", ["animal-mammal"]), ("植物", ["plant-flower", "plant-other"]), ("花朵", ["plant-flower"]),
    ("交通工具", ["transport-ground", "transport-water", "transport-air"]), ("车辆", ["transport-ground"]),
    ("船只", ["transport-water"]), ("飞行器", ["transport-air"]), ("建筑", ["place-building", "place-religious"]),
    ("天气", ["sky-weather"]), ("钟表", ["time"]), ("节日庆典", ["event"]), ("体育", ["sport", "person-sport"]),
    ("衣服", ["clothing"]), ("乐器", ["musical-instrument"]), ("电脑设备", ["computer"]), ("书籍", ["book-paper"]),
    ("金钱", ["money"]), ("办公用品", ["office", "writing"]), ("工具", ["tool"]), ("科学仪器", ["science"]),
    ("医疗用品", ["medical"]), ("家居用品", ["household"]), ("箭头", ["arrow"]), ("星座", ["zodiac"]),
    ("国旗", ["country-flag", "subdivision-flag"]), ("笑脸", ["face-smiling", "face-affection"]),
    ("难过的表情", ["face-concerned"]), ("爱心", ["heart"]),
    ("手势", ["hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed", "hands",
              "hand-prop"]),
    ("职业人物", ["person-role"]),
]
TAGS = [("海边", {"beach", "ocean", "sea", "seaside", "shore", "surfing"})]


def categories(emoji):
    """[(word, set of emoji indices)], 40 of them."""
    out = [(word, {e.index for e in emoji if e.subgroup in subgroups}) for word, subgroups in SUBGROUPS]
    for word, tags in TAGS:
        out.append((word, {e.index for e in emoji if tags & {t.lower() for t in e.tags["en"]}}))
    assert len(out) == 40 and all(members for _, members in out)
    return out
