"""The methods that the paper proposes."""
