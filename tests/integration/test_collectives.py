"""Processes that talk to each other, and what is said where they do not talk of the same."""

import pytest
import world_processes as there
from world_processes import in_processes, line_of

pytestmark = pytest.mark.slow

SIZES = (2, 3, 5)


@pytest.fixture(scope="module", params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def found(size: int) -> dict[str, list]:
    """Hold what each work gave in each process; after a mismatch they go on with the next."""
    works = [
        there.leave_out,
        there.exchanges,
        there.leave_out_in_a_loop,
        there.leave_out_in_a_thread,
        there.differ,
        there.leave_out_a_forward,
        there.learn_the_head_alone,
    ]
    outcomes = in_processes(size, *works)
    return {work.__name__: outcome for work, outcome in zip(works, outcomes, strict=True)}


def others(size: int) -> str:
    """Return the numbers of all processes but the second."""
    return ", ".join(str(rank) for rank in range(size) if rank != 1)


def test_every_exchange_gives_all_processes_what_one_process_would_have(
    found: dict[str, list], size: int
):
    total = size * (size - 1) / 2
    for rank, values in enumerate(found["exchanges"]):
        assert values == [
            list(range(size)),
            total,
            True,
            "from 0",
            rank,
            "even",
            True,
            [0, 10, 20, 30, 40, 50, 60],
            [40],
            1.0,  # the main process's weight
            total,  # the first process had no gradient
            None,
        ]


def test_a_collective_that_one_process_leaves_out_is_an_error_in_all_that_names_both_lines(
    found: dict[str, list], size: int
):
    assert len(set(found["leave_out"])) == 1
    message = found["leave_out"][0]
    assert message.startswith("TrainingError: the processes entered different collectives (")
    assert f"process {others(size)}: World.agree at {line_of('left out')} <" in message
    assert f"process 1: World.gather at {line_of('entered too early')} <" in message


def test_a_helper_that_was_entered_from_different_lines_is_told_apart(found: dict[str, list]):
    assert len(set(found["leave_out_in_a_loop"])) == 1
    message = found["leave_out_in_a_loop"][0]
    for caller in ("one caller", "another caller"):
        assert f"{line_of('shared helper')} < {line_of(caller)} <" in message


def test_a_thread_is_checked_on_its_own_channel_while_the_main_threads_go_on(
    found: dict[str, list], size: int
):
    messages = {message for _, message in found["leave_out_in_a_thread"]}
    assert len(messages) == 1
    message = messages.pop()
    assert f"process {others(size)}: World.any at {line_of('left out by a thread')}" in message
    assert f"process 1: World.sum at {line_of('entered too early by a thread')}" in message
    for sums, _ in found["leave_out_in_a_thread"]:
        assert sums == [size * number for number in range(50)]


def test_a_value_that_is_not_alike_ends_all_and_the_first_says_what_differs(
    found: dict[str, list], size: int
):
    message = (
        f"process {size - 1} has other options than process 0 (b: 3 and b: 2); start all by the "
        "same command with the same files"
    )
    peers = [f"PeerError: {message}"] * (size - 1)
    assert found["differ"] == [f"TrainingError: {message}", *peers]


def test_a_forward_of_a_sharded_model_is_checked_too(found: dict[str, list], size: int):
    assert len(set(found["leave_out_a_forward"])) == 1
    message = found["leave_out_a_forward"][0]
    assert f"process {others(size)}: Sharding.enter_forward at {line_of('forward')} <" in message
    assert f"process 1: World.gather at {line_of('instead of a forward')} <" in message


def test_a_head_that_some_processes_did_not_use_gets_the_gradient_of_those_that_did(
    found: dict[str, list], size: int
):
    assert found["learn_the_head_alone"] == [[3.0] * 8] * size
