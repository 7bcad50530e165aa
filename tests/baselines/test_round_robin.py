"""Round robin on observations made by hand."""

from hand_made import D, M, P, observed

from conserve_gym.baselines.round_robin import RoundRobin


def test_takes_each_engine_in_turn_whatever_they_hold() -> None:
    policy = RoundRobin()
    seen = observed((M, M, M), free=[0, 900, 10], closed=(0,), turns_in_flight=[9, 0, 0])
    assert [policy.decide(seen) for _ in range(4)] == [
        (engine, engine, float("inf")) for engine in (0, 1, 2, 0)
    ]


def test_an_episode_begins_with_the_first_engine() -> None:
    policy = RoundRobin()
    seen = observed((M, M), free=[9, 9])
    policy.decide(seen)
    policy.reset(1)
    assert policy.decide(seen).decode_at == 0


def test_engines_that_do_not_decode_are_left_out() -> None:
    policy = RoundRobin()
    seen = observed((P, D, D), free=[9, 9, 9])
    assert [policy.decide(seen).decode_at for _ in range(3)] == [1, 2, 1]
