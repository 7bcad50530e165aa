"""Why a policy decided as it did, and a short rule that decides almost the same."""
