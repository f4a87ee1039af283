"""The block types of the voxel world: their numbers, and the pattern and colour of each face.

A cell is one byte. Bytes from AIR on are air and hold the distance to the nearest block (see world.py), so that one read shows how far a
ray can skip. WATER does not stop a body; all other types are solid. 0 occurs only while a world is generated.
"""

from __future__ import annotations

AIR = 128  # AIR + k: air whose nearest block is k cells away (Chebyshev), k >= 1
WATER = 1

# name: (face,) for all faces, or (side, top, bottom); a face is (pattern, colour[, second colour])
_DIRT = ("mottle", (134, 98, 68))
_STONE = ("mottle", (128, 128, 130))

FACES: dict[str, tuple] = {
    "water": (("ripple", (52, 104, 190)),),
    "stone": (_STONE,),
    "dirt": (_DIRT,),
    "grass": (("fringe", (134, 98, 68), (96, 160, 58)), ("mottle", (98, 164, 60)), _DIRT),
    "flowers_red": (("fringe", (134, 98, 68), (96, 160, 58)), ("dots", (98, 164, 60), (214, 60, 52)), _DIRT),
    "flowers_yellow": (("fringe", (134, 98, 68), (96, 160, 58)), ("dots", (98, 164, 60), (240, 214, 70)), _DIRT),
    "forest_grass": (("fringe", (110, 80, 54), (70, 130, 58)), ("mottle", (72, 134, 60)), _DIRT),
    "dry_grass": (("fringe", (150, 100, 62), (182, 168, 78)), ("mottle", (184, 170, 80)), _DIRT),
    "sand": (("mottle", (222, 208, 156)),),
    "red_sand": (("mottle", (196, 110, 58)),),
    "snow": (("fringe", (134, 98, 68), (238, 244, 250)), ("mottle", (238, 244, 250)), _DIRT),
    "ice": (("mottle", (160, 200, 240)),),
    "gravel": (("cobble", (150, 140, 132)),),
    "path": (("fringe", (134, 98, 68), (178, 148, 96)), ("mottle", (180, 150, 98)), _DIRT),
    "clay_white": (("mottle", (212, 182, 164)),),
    "clay_orange": (("mottle", (168, 88, 44)),),
    "clay_brown": (("mottle", (112, 70, 50)),),
    "oak_log": (("bark", (108, 84, 52)), ("rings", (168, 136, 84)), ("rings", (168, 136, 84))),
    "oak_leaves": (("leaves", (70, 130, 40)),),
    "birch_log": (("birch", (224, 222, 212)), ("rings", (206, 188, 140)), ("rings", (206, 188, 140))),
    "birch_leaves": (("leaves", (138, 176, 74)),),
    "spruce_log": (("bark", (72, 50, 30)), ("rings", (120, 88, 54)), ("rings", (120, 88, 54))),
    "spruce_leaves": (("leaves", (40, 84, 60)),),
    "acacia_log": (("bark", (124, 112, 100)), ("rings", (176, 96, 56)), ("rings", (176, 96, 56))),
    "acacia_leaves": (("leaves", (120, 138, 36)),),
    "blossom": (("leaves", (240, 160, 196)),),
    "autumn_leaves": (("leaves", (212, 112, 32)),),
    "cactus": (("stripes", (70, 130, 60)), ("mottle", (92, 150, 74)), ("mottle", (92, 150, 74))),
    "oak_planks": (("planks", (176, 140, 86)),),
    "dark_planks": (("planks", (88, 58, 34)),),
    "birch_planks": (("planks", (214, 196, 140)),),
    "red_planks": (("planks", (160, 70, 56)),),
    "cobble": (("cobble", (122, 122, 122)),),
    "mossy_cobble": (("cobble", (102, 122, 86)),),
    "stone_bricks": (("bricks", (142, 142, 146)),),
    "dark_bricks": (("bricks", (64, 62, 74)),),
    "red_bricks": (("bricks", (160, 84, 68)),),
    "sandstone": (("layers", (216, 198, 142)), ("mottle", (222, 206, 152)), ("mottle", (210, 190, 134))),
    "plaster": (("mottle", (238, 234, 222)),),
    "blue_tiles": (("bricks", (62, 92, 150)),),
    "green_tiles": (("bricks", (58, 124, 98)),),
    "thatch": (("straw", (206, 172, 60)), ("mottle", (206, 176, 70)), ("mottle", (190, 160, 60))),
    "red": (("wool", (188, 44, 40)),),
    "orange": (("wool", (240, 130, 30)),),
    "yellow": (("wool", (248, 206, 48)),),
    "lime": (("wool", (124, 204, 40)),),
    "cyan": (("wool", (30, 160, 168)),),
    "blue": (("wool", (48, 66, 176)),),
    "purple": (("wool", (128, 48, 180)),),
    "magenta": (("wool", (214, 74, 190)),),
    "white": (("wool", (236, 238, 240)),),
    "black": (("wool", (34, 34, 40)),),
    "glass": (("pane", (176, 214, 232)),),
    "lamp": (("lamp", (252, 224, 140)),),
    "gold": (("metal", (250, 210, 60)),),
    "copper": (("metal", (92, 178, 150)),),
    "iron": (("metal", (214, 214, 214)),),
    "mushroom_red": (("spots", (198, 40, 38), (240, 236, 228)),),
    "mushroom_brown": (("spots", (150, 110, 80), (186, 152, 118)),),
    "mushroom_purple": (("spots", (130, 60, 170), (226, 190, 240)),),
    "mushroom_stem": (("bark", (222, 214, 198)),),
    "pumpkin": (("stripes", (222, 126, 26)), ("rings", (206, 120, 30)), ("rings", (206, 120, 30))),
    "books": (("books", (176, 140, 86)), ("planks", (176, 140, 86)), ("planks", (176, 140, 86))),
    "bedrock": (("cobble", (70, 70, 74)),),
    # colours that no generated world has, for landmarks that `MinecraftEnv.build` adds
    "pink": (("wool", (255, 120, 150)),),
    "turquoise": (("wool", (60, 240, 190)),),
    "maroon": (("wool", (110, 10, 40)),),
    "navy": (("wool", (20, 24, 90)),),
}

NAMES = tuple(FACES)
NUMBER = {name: i + 1 for i, name in enumerate(NAMES)}  # water is 1
assert NUMBER["water"] == WATER and len(NAMES) + 1 < AIR
