"""What a machine of the control plane asks its shell to publish."""

from __future__ import annotations


class Publish:
    """One MQTT message to send."""

    __slots__ = ("payload", "qos", "retain", "topic")

    def __init__(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain

    def __repr__(self) -> str:
        return f"Publish({self.topic}, {len(self.payload)} B, qos={self.qos}, retain={self.retain})"
