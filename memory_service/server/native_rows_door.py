"""The rows door of a shard in C++: memory_service/native/server_*.cc, as the server of a shard sees it."""

from __future__ import annotations

from memory_service.protocol.addresses import Address
from memory_service.protocol.bearer_token import REFUSAL
from memory_service.protocol.row_messages import max_request_bytes
from memory_service.protocol.security import ServerSecurity
from memory_service.server.limits import DoorLimits
from memory_service.shard.shard import Shard


class NativeRowsDoor:
    """The gRPC server of a shard's rows, listening from construction on. It admits clients by its own counts."""

    implementation = "native"

    def __init__(self, shard: Shard, host: str, port: int, security: ServerSecurity, limits: DoorLimits) -> None:
        address, pem = str(Address(host, port)), security.pem()
        try:
            self._server = shard.compiled.RowsServer(
                shard=shard.native,
                address=address,
                key=pem.key,
                certificate=pem.certificate,
                client_ca=pem.client_ca,
                token=security.token.header if security.token else "",
                refusal=REFUSAL,
                streams=limits.streams,
                streams_per_client=limits.streams_per_client,
                request_bytes_per_client=limits.request_bytes_per_client,
                max_message_bytes=max_request_bytes(shard.config.max_rows),
            )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: choose a free port, or 0 for any ({error})") from error
        self.port: int = self._server.port

    def stop(self, grace_s: float) -> bool:
        """Stop listening, and end every stream once the requests that are being answered have their rows.

        Returns:
            Whether all streams have ended within `grace_s`; those that have not are broken off.
        """
        return self._server.stop(grace_s)
