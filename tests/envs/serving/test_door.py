"""The door: first come, first served, and three ways to count KV."""

from __future__ import annotations

import pytest

from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.serving.door import Door, HoldingDoor
from conserve_gym.fleet import Fleet, Role
from conserve_gym.ledger import Ledger, Placed, TurnArrived, TurnFinished
from conserve_gym.observer import Observer

FLEET = Fleet((Role.PREFILL, Role.DECODE, Role.DECODE), (1000, 100, 200))


class Scene:
    """A door with the ledger that it reads; everybody arrives at time 0."""

    def __init__(self, reservation: Reservation) -> None:
        self.ledger = Ledger()
        observer = Observer(self.ledger, FLEET, Deployment(reservation=reservation))
        self.door = Door(FLEET, reservation, observer)

    def arrive(self, conversation: int, prompt: int, peak: int) -> None:
        self.ledger.append(TurnArrived(0.0, conversation, 0, prompt, prompt))
        self.door.enqueue(conversation, 0, prompt, peak)

    def admit(self, decode_at: int) -> int:
        head = self.door.admit(decode_at)
        self.ledger.append(Placed(0.0, head.conversation, head.turn, decode_at, decode_at, 0.0))
        return head.conversation

    def open_to(self) -> list[bool]:
        return self.door.observe(0.0).open_to.tolist()

    def free(self) -> list[float]:
        return self.door.observe(0.0).free_kv_tokens.tolist()


def test_nobody_waits_at_a_closed_door() -> None:
    scene = Scene(Reservation.NONE)
    assert not scene.door.is_open()


@pytest.mark.parametrize("reservation", Reservation)
def test_first_come_first_served(reservation: Reservation) -> None:
    scene = Scene(reservation)
    for conversation in (3, 1, 2):
        scene.arrive(conversation, 10, 20)
    assert scene.door.head.conversation == 3
    assert [scene.admit(1), scene.admit(1), scene.admit(2)] == [3, 1, 2]


def test_without_reservation_the_door_is_always_open() -> None:
    scene = Scene(Reservation.NONE)
    for conversation in range(5):
        scene.arrive(conversation, 90, 100)
        assert scene.door.is_open()
        assert scene.open_to() == [False, True, True]
        scene.admit(1)


def test_per_turn_counts_what_the_ledger_says() -> None:
    scene = Scene(Reservation.PER_TURN)
    scene.arrive(0, 90, 10**6)  # the peak is nobody's to know
    scene.arrive(1, 150, 160)
    assert scene.door.is_open()
    assert scene.free() == [1000.0, 100.0, 200.0]
    scene.admit(1)
    assert scene.door.is_open()
    assert scene.free() == [1000.0, 10.0, 200.0]
    assert scene.open_to() == [False, False, True]
    scene.admit(2)
    scene.arrive(2, 60, 70)
    assert not scene.door.is_open()  # 10 and 50 are free, and the prefill engine does not count
    scene.ledger.append(TurnFinished(1.0, 0, 0, 1, 90, 0, 5))
    assert not scene.door.is_open()
    scene.ledger.append(TurnArrived(1.0, 0, 1, 40, 40))  # its context was rewritten
    assert scene.door.is_open()
    assert scene.open_to() == [False, True, False]


def test_a_large_head_of_the_line_holds_up_small_ones() -> None:
    scene = Scene(Reservation.PER_TURN)
    scene.arrive(0, 190, 200)
    scene.admit(2)
    scene.arrive(1, 120, 130)
    scene.arrive(2, 1, 2)
    assert not scene.door.is_open()


def test_the_oracle_counts_peaks_until_a_conversation_leaves() -> None:
    scene = Scene(Reservation.ORACLE_PEAK)
    scene.arrive(0, 10, 100)
    scene.arrive(1, 10, 150)
    scene.arrive(2, 10, 60)
    scene.admit(1)
    assert scene.door.is_open()
    assert scene.open_to() == [False, False, True]
    assert scene.free() == [1000.0, 0.0, 200.0]
    scene.admit(2)
    assert not scene.door.is_open()
    scene.door.leave(0)
    assert scene.door.is_open()
    assert scene.free() == [1000.0, 100.0, 50.0]
    scene.door.leave(0)  # it has left already
    assert scene.free() == [1000.0, 100.0, 50.0]


def test_an_exact_fit_fits() -> None:
    for reservation in Reservation:
        scene = Scene(reservation)
        scene.arrive(0, 200, 200)
        assert scene.door.is_open()
        assert scene.open_to()[2]


def test_where_somebody_may_be_held_the_newest_comes_first_and_later_turns_before_all() -> None:
    scene = Scene(Reservation.NONE)
    scene.door = HoldingDoor(FLEET, Reservation.NONE, scene.door._observer)
    for conversation in (3, 1, 2):
        scene.arrive(conversation, 10, 20)
    assert scene.door.head.conversation == 2
    assert [scene.admit(1), scene.admit(1)] == [2, 1]
    for conversation in (1, 2):  # their next turns
        scene.ledger.append(TurnArrived(0.0, conversation, 1, 15, 5))
        scene.door.enqueue(conversation, 1, 15, 20)
    scene.arrive(4, 10, 20)
    assert [scene.door.admit(1).conversation for _ in range(4)] == [1, 2, 4, 3]
