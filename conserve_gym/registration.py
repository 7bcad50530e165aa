"""Registers the environments with Gymnasium."""

ENVIRONMENTS = {
    "conserve_gym/ConversationPlacement-v0": (
        "conserve_gym.envs.placement_env:ConversationPlacementEnv"
    ),
    "conserve_gym/JointPlacement-v0": "conserve_gym.envs.placement_env:JointPlacementEnv",
    "conserve_gym/TurnPlacement-v0": "conserve_gym.envs.placement_env:TurnPlacementEnv",
}


def register_environments() -> None:
    """Register every environment; doing it twice changes nothing."""
    import gymnasium

    for identifier, entry_point in ENVIRONMENTS.items():
        if identifier not in gymnasium.registry:
            gymnasium.register(id=identifier, entry_point=entry_point)
