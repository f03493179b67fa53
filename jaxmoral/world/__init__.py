"""Games, opponents, rewards and how they are played: pure functions that know no text."""
