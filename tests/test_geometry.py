"""Poses, egomotion, what tokens look at, and what actions do: closed forms and inverses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from wmgym import settings
from wmgym.geometry import compose, relative_pose, step_back, token_rays, view_direction, wrap_angle
from wmgym.settings.minecraft import SETTING, TURN, WALK

PI = torch.tensor(math.pi)
FIELD = math.radians(75)

metres = st.floats(-300, 300, width=32)
yaws = st.floats(-3.125, 3.125, width=32)
pitches = st.floats(-1.5, 1.5, width=32)
poses = st.tuples(metres, metres, metres, yaws, pitches).map(lambda p: torch.tensor(p, dtype=torch.float64))


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Radians; exact for small angles too."""
    return 2 * torch.asin(((a - b).norm(dim=-1) / 2).clamp(max=1))


@given(st.floats(-1000, 1000, width=32))
def test_wrapped_angles_are_the_same_angle_in_half_open_range(angle: float) -> None:
    wrapped = wrap_angle(torch.tensor(angle))
    assert -PI <= wrapped < PI
    assert math.cos(wrapped - angle) == pytest.approx(1, abs=1e-6)


def test_wrapping_at_the_seam() -> None:
    seam = torch.stack([PI, -PI, torch.nextafter(PI, 4 * PI), torch.nextafter(-PI, -4 * PI), 3 * PI, -3 * PI])
    wrapped = wrap_angle(seam)
    assert (wrapped >= -PI).all() and (wrapped < PI).all()
    assert wrapped[0] == wrapped[1] == -PI


def test_compose_turns_the_egomotion_into_the_world() -> None:
    north = torch.tensor([1.0, 2.0, 3.0, math.pi / 2, 0.25])  # looks along +y
    moved = compose(north, torch.tensor([2.0, 0.5, -1.0, math.pi, 0.5]))
    assert moved.tolist() == pytest.approx([0.5, 4.0, 2.0, -math.pi / 2, 0.75], abs=1e-6)
    assert compose(north, torch.tensor([0, 0, 0, 0, 2.0]))[4] == pytest.approx(math.pi / 2)
    assert compose(north, torch.tensor([0, 0, 0, 0, -9.0]))[4] == pytest.approx(-math.pi / 2)


@given(poses, poses)
def test_relative_pose_and_compose_are_inverses(a: Tensor, b: Tensor) -> None:
    back = compose(a, relative_pose(b, a))
    assert torch.allclose(back[[0, 1, 2, 4]], b[[0, 1, 2, 4]], atol=1e-9)
    assert float(wrap_angle(back[3] - b[3]).abs()) < 1e-9
    assert torch.allclose(relative_pose(a, a), torch.zeros(5, dtype=torch.float64), atol=1e-12)


@given(poses, poses)
def test_step_back_inverts_compose_in_its_pose(pose: Tensor, egomotion: Tensor) -> None:
    back = compose(step_back(pose, egomotion), egomotion)
    assert torch.allclose(back[[0, 1, 2, 4]], pose[[0, 1, 2, 4]], atol=1e-9)
    assert float(wrap_angle(back[3] - pose[3]).abs()) < 1e-9


def test_step_back_undoes_compose_in_whole_batches() -> None:
    start, egomotion = 0.5 * torch.randn(3, 4, 5), 0.5 * torch.randn(3, 4, 5)  # pitch stays within its bounds
    back = step_back(compose(start, egomotion), egomotion)
    assert torch.allclose(back[..., :3], start[..., :3], atol=1e-5)
    assert float(wrap_angle(back[..., 3] - start[..., 3]).abs().max()) < 1e-5


@given(poses, poses, poses)
def test_relative_poses_do_not_depend_on_where_the_world_lies(a: Tensor, b: Tensor, frame: Tensor) -> None:
    """Seen from each other, two poses look the same after the whole world was turned and moved (about the vertical)."""
    frame = frame * torch.tensor([1, 1, 1, 1, 0])
    moved = relative_pose(compose(frame, b), compose(frame, a))
    expected = relative_pose(b, a)
    assert torch.allclose(moved[[0, 1, 2, 4]], expected[[0, 1, 2, 4]], atol=1e-8)
    assert float(wrap_angle(moved[3] - expected[3]).abs()) < 1e-9


def test_relative_pose_broadcasts_over_frames() -> None:
    past, now = torch.randn(3, 6, 5), torch.randn(3, 5)
    together = relative_pose(past, now[:, None])
    for row in range(3):
        for n in range(6):
            assert torch.allclose(together[row, n], relative_pose(past[row, n], now[row]), atol=1e-6)


def test_view_direction_along_the_axes() -> None:
    looks = torch.tensor([[0, 0], [math.pi / 2, 0], [-math.pi, 0], [0, math.pi / 2], [0, -math.pi / 2]])
    directions = view_direction(torch.cat([torch.zeros(5, 3), looks], 1))
    expected = [[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]]
    assert torch.allclose(directions, torch.tensor(expected).float(), atol=1e-6)


def rays(relative: Tensor, pitch: float = 0.0, height: int = 5, width: int = 7) -> Tensor:
    """Directions and eyes of one frame's tokens: [height, width, 6]."""
    return token_rays(relative[None, None], torch.tensor([pitch]), height, width, FIELD)[0, 0].unflatten(0, (height, width))


@examples(max_examples=50)
@given(yaws, st.floats(-1.0, 1.0, width=32), st.floats(-0.5, 0.5, width=32))
def test_the_middle_token_looks_along_the_view(turn: float, pitch: float, tilt: float) -> None:
    """In the reference's yaw frame that is `view_direction` of the relative yaw and the frame's own pitch."""
    middle = rays(torch.tensor([0, 0, 0, turn, tilt]), pitch)[2, 3, :3]
    view = view_direction(torch.tensor([0, 0, 0, turn, pitch + tilt]))
    assert torch.allclose(middle, view, atol=1e-6)


def test_the_middle_token_of_a_remembered_frame_looks_where_that_frame_looked_in_the_world() -> None:
    """The whole chain: two poses in the world -> relative pose -> ray in the target's yaw frame -> back to the world."""
    target, past = torch.tensor([3.0, -2.0, 1.0, 2.5, -0.3]), torch.tensor([5.0, 4.0, 2.0, -2.9, 0.4])
    ray = rays(relative_pose(past, target), float(target[4]))[2, 3]
    world = compose(torch.cat([torch.zeros(3), target[3:4], torch.zeros(1)]), torch.cat([ray[:3], torch.zeros(2)]))[:3]
    assert torch.allclose(world, view_direction(past), atol=1e-6)
    eye = compose(target * torch.tensor([1, 1, 1, 1, 0]), torch.cat([ray[3:], torch.zeros(2)]))[:3]
    assert torch.allclose(eye, past[:3], atol=1e-5)


@pytest.mark.parametrize(("here", "there"), [(0, 1), (1, 2), (2, 5), (6, 3)])
def test_a_turn_moves_a_tokens_ray_to_its_neighbours(here: int, there: int) -> None:
    """A token left of the middle by tan(a) looks a to the left: turning the frame by the difference brings one onto another."""
    level = rays(torch.zeros(5))[2]
    a, b = torch.atan2(level[here, 1], level[here, 0]), torch.atan2(level[there, 1], level[there, 0])
    turned = rays(torch.tensor([0, 0, 0, float(b - a), 0]))[2]
    assert torch.allclose(turned[here, :3], level[there, :3], atol=1e-6)
    half = math.tan(FIELD / 2) * 7 / 5  # half the picture's width at distance 1
    assert math.tan(a) == pytest.approx((1 - 2 * (here + 0.5) / 7) * half, abs=1e-6)  # pixels are square


@pytest.mark.parametrize(("here", "there"), [(0, 1), (3, 2), (4, 0)])
def test_a_tilt_moves_a_tokens_ray_to_the_one_above_or_below(here: int, there: int) -> None:
    """And whether the pitch is the reference's or the frame's own makes no difference."""
    upright = rays(torch.zeros(5))[:, 3]
    a, b = torch.atan2(upright[here, 2], upright[here, 0]), torch.atan2(upright[there, 2], upright[there, 0])
    tilted = rays(torch.tensor([0, 0, 0, 0, float(b - a)]))[:, 3]
    assert torch.allclose(tilted[here, :3], upright[there, :3], atol=1e-6)
    assert torch.allclose(rays(torch.zeros(5), float(b - a))[:, 3], tilted, atol=1e-6)
    assert math.tan(a) == pytest.approx((1 - 2 * (here + 0.5) / 5) * math.tan(FIELD / 2), abs=1e-6)


def test_the_first_token_looks_up_and_left_and_all_are_unit_vectors() -> None:
    grid = rays(torch.tensor([1.0, 2.0, 3.0, 0, 0]))
    assert grid[0, 0, 1] > 0 and grid[0, 0, 2] > 0 and grid[-1, -1, 1] < 0 and grid[-1, -1, 2] < 0
    assert torch.allclose(grid[..., :3].norm(dim=-1), torch.ones(5, 7))
    assert (grid[..., 3:] == torch.tensor([1.0, 2.0, 3.0])).all()


@examples(max_examples=50)
@given(yaws, yaws, st.floats(-1, 1, width=32))
def test_a_turn_turns_all_rays_alike(turn: float, more: float, pitch: float) -> None:
    """Angles between tokens of one frame do not change, and turns add up."""
    before = rays(torch.tensor([0, 0, 0, turn, 0]), pitch)[..., :3].flatten(0, 1)
    after = rays(torch.tensor([0, 0, 0, turn + more, 0]), pitch)[..., :3].flatten(0, 1)
    cos, sin = math.cos(more), math.sin(more)
    turned = before @ torch.tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1.0]])
    assert float(angle_between(turned, after).max()) < 1e-5


# -- kinematics -----------------------------------------------------------------------------------------------------------------------

MOVES = SETTING.kinematics
NOOP, FORWARD, BACK, STRAFE_LEFT, STRAFE_RIGHT, JUMP, TURN_LEFT, TURN_RIGHT, LOOK_UP, LOOK_DOWN = range(10)


def walked(*actions: int) -> Tensor:
    pose = torch.zeros(5)
    for action in actions:
        pose = compose(pose, MOVES.motion(torch.tensor(action)))
    return pose


def test_what_each_action_does_from_the_origin() -> None:
    step = 4.317 * 0.2  # blocks a second, seconds a step
    expected = {
        NOOP: [0, 0, 0, 0, 0],
        FORWARD: [step, 0, 0, 0, 0],
        BACK: [-step, 0, 0, 0, 0],
        STRAFE_LEFT: [0, step, 0, 0, 0],
        STRAFE_RIGHT: [0, -step, 0, 0, 0],
        JUMP: [step, 0, 0, 0, 0],
        TURN_LEFT: [0, 0, 0, math.pi / 12, 0],
        TURN_RIGHT: [0, 0, 0, -math.pi / 12, 0],
        LOOK_UP: [0, 0, 0, 0, math.pi / 12],
        LOOK_DOWN: [0, 0, 0, 0, -math.pi / 12],
    }
    assert len(expected) == MOVES.num_actions
    for action, pose in expected.items():
        assert walked(action).tolist() == pytest.approx(pose, abs=1e-6), action


def test_a_square_walk_comes_home() -> None:
    side = [FORWARD] * 3 + [TURN_LEFT] * 6
    pose = walked(*side * 4)
    assert pose.tolist() == pytest.approx([0, 0, 0, 0, 0], abs=1e-5)
    corner = walked(*side * 2)
    assert corner[:3].tolist() == pytest.approx([3 * WALK, 3 * WALK, 0], abs=1e-5)
    assert abs(float(corner[3])) == pytest.approx(math.pi, abs=1e-5)


def test_strafing_is_walking_sideways() -> None:
    sideways = walked(TURN_LEFT, *[STRAFE_LEFT] * 4)
    ahead = walked(*[TURN_LEFT] * 7, *[FORWARD] * 4)
    assert torch.allclose(sideways[:3], ahead[:3], atol=1e-5)


def test_motion_keeps_the_shape_of_the_actions() -> None:
    actions = torch.randint(10, (2, 3))
    motion = MOVES.motion(actions)
    assert motion.shape == (2, 3, 5) and motion.dtype == torch.float32
    assert torch.equal(motion[1, 2], MOVES.motion(actions[1, 2]))


def test_a_correction_may_change_where_one_stands_but_never_where_one_looks() -> None:
    assert MOVES.mask().tolist() == [1, 1, 1, 0, 0]
    assert MOVES.field_of_view == pytest.approx(FIELD) and math.isclose(TURN, math.pi / 12)
    assert settings.get("minecraft").kinematics is MOVES
    with pytest.raises(ValueError, match=r"minecraft.*'mars'"):
        settings.get("mars")
