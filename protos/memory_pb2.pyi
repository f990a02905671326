from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_OK: _ClassVar[Status]
    STATUS_INTERNAL: _ClassVar[Status]
    STATUS_INVALID_REQUEST: _ClassVar[Status]
    STATUS_REQUEST_TOO_LARGE: _ClassVar[Status]
    STATUS_UNKNOWN_TABLE: _ClassVar[Status]
    STATUS_ROW_OUT_OF_RANGE: _ClassVar[Status]
    STATUS_FINGERPRINT_MISMATCH: _ClassVar[Status]
    STATUS_WRONG_EPOCH: _ClassVar[Status]
    STATUS_SNAPSHOT_ERROR: _ClassVar[Status]
    STATUS_UNAVAILABLE: _ClassVar[Status]
    STATUS_DEADLINE_EXCEEDED: _ClassVar[Status]
    STATUS_OUT_OF_MEMORY: _ClassVar[Status]
    STATUS_RESOURCE_EXHAUSTED: _ClassVar[Status]
    STATUS_UNAUTHENTICATED: _ClassVar[Status]
    STATUS_OLD_VERSION: _ClassVar[Status]
    STATUS_WRONG_STEP: _ClassVar[Status]
STATUS_OK: Status
STATUS_INTERNAL: Status
STATUS_INVALID_REQUEST: Status
STATUS_REQUEST_TOO_LARGE: Status
STATUS_UNKNOWN_TABLE: Status
STATUS_ROW_OUT_OF_RANGE: Status
STATUS_FINGERPRINT_MISMATCH: Status
STATUS_WRONG_EPOCH: Status
STATUS_SNAPSHOT_ERROR: Status
STATUS_UNAVAILABLE: Status
STATUS_DEADLINE_EXCEEDED: Status
STATUS_OUT_OF_MEMORY: Status
STATUS_RESOURCE_EXHAUSTED: Status
STATUS_UNAUTHENTICATED: Status
STATUS_OLD_VERSION: Status
STATUS_WRONG_STEP: Status

class TableSpec(_message.Message):
    __slots__ = ("name", "layer", "column_rows", "max_ngram", "heads", "multipliers", "pad_id", "token_map_sha256", "dim", "row_format", "block_rows")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    COLUMN_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_NGRAM_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    MULTIPLIERS_FIELD_NUMBER: _ClassVar[int]
    PAD_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_MAP_SHA256_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    ROW_FORMAT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ROWS_FIELD_NUMBER: _ClassVar[int]
    name: str
    layer: int
    column_rows: _containers.RepeatedScalarFieldContainer[int]
    max_ngram: int
    heads: int
    multipliers: _containers.RepeatedScalarFieldContainer[int]
    pad_id: int
    token_map_sha256: str
    dim: int
    row_format: str
    block_rows: int
    def __init__(self, name: _Optional[str] = ..., layer: _Optional[int] = ..., column_rows: _Optional[_Iterable[int]] = ..., max_ngram: _Optional[int] = ..., heads: _Optional[int] = ..., multipliers: _Optional[_Iterable[int]] = ..., pad_id: _Optional[int] = ..., token_map_sha256: _Optional[str] = ..., dim: _Optional[int] = ..., row_format: _Optional[str] = ..., block_rows: _Optional[int] = ...) -> None: ...

class ShardAddress(_message.Message):
    __slots__ = ("shard", "address")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    shard: str
    address: str
    def __init__(self, shard: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class TablePlacement(_message.Message):
    __slots__ = ("table", "replicas", "shards")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    table: str
    replicas: int
    shards: bytes
    def __init__(self, table: _Optional[str] = ..., replicas: _Optional[int] = ..., shards: _Optional[bytes] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("epoch", "shards", "tables")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    shards: _containers.RepeatedCompositeFieldContainer[ShardAddress]
    tables: _containers.RepeatedCompositeFieldContainer[TablePlacement]
    def __init__(self, epoch: _Optional[int] = ..., shards: _Optional[_Iterable[_Union[ShardAddress, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[TablePlacement, _Mapping]]] = ...) -> None: ...

class HeldTable(_message.Message):
    __slots__ = ("spec", "version", "blocks", "shared", "fingerprint", "row_bytes")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    spec: TableSpec
    version: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    shared: SharedTable
    fingerprint: bytes
    row_bytes: int
    def __init__(self, spec: _Optional[_Union[TableSpec, _Mapping]] = ..., version: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ..., shared: _Optional[_Union[SharedTable, _Mapping]] = ..., fingerprint: _Optional[bytes] = ..., row_bytes: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("shard", "incarnation", "rows_port", "placement", "tables", "node", "implementation")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROWS_PORT_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    IMPLEMENTATION_FIELD_NUMBER: _ClassVar[int]
    shard: str
    incarnation: str
    rows_port: int
    placement: Placement
    tables: _containers.RepeatedCompositeFieldContainer[HeldTable]
    node: str
    implementation: str
    def __init__(self, shard: _Optional[str] = ..., incarnation: _Optional[str] = ..., rows_port: _Optional[int] = ..., placement: _Optional[_Union[Placement, _Mapping]] = ..., tables: _Optional[_Iterable[_Union[HeldTable, _Mapping]]] = ..., node: _Optional[str] = ..., implementation: _Optional[str] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("placement", "current", "snapshot_uri")
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_URI_FIELD_NUMBER: _ClassVar[int]
    placement: Placement
    current: Placement
    snapshot_uri: str
    def __init__(self, placement: _Optional[_Union[Placement, _Mapping]] = ..., current: _Optional[_Union[Placement, _Mapping]] = ..., snapshot_uri: _Optional[str] = ...) -> None: ...

class PrepareReply(_message.Message):
    __slots__ = ("kept", "copied", "loaded", "bytes")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    kept: int
    copied: int
    loaded: int
    bytes: int
    def __init__(self, kept: _Optional[int] = ..., copied: _Optional[int] = ..., loaded: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class ActivateRequest(_message.Message):
    __slots__ = ("placement",)
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    placement: Placement
    def __init__(self, placement: _Optional[_Union[Placement, _Mapping]] = ...) -> None: ...

class ActivateReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("uri", "table", "prefix", "blocks", "base")
    URI_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    uri: str
    table: str
    prefix: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    base: _containers.RepeatedCompositeFieldContainer[BlockEntry]
    def __init__(self, uri: _Optional[str] = ..., table: _Optional[str] = ..., prefix: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ..., base: _Optional[_Iterable[_Union[BlockEntry, _Mapping]]] = ...) -> None: ...

class BlockEntry(_message.Message):
    __slots__ = ("block", "file", "batch", "rows", "digest")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    block: int
    file: str
    batch: int
    rows: int
    digest: str
    def __init__(self, block: _Optional[int] = ..., file: _Optional[str] = ..., batch: _Optional[int] = ..., rows: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class SnapshotReply(_message.Message):
    __slots__ = ("version", "blocks")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    version: int
    blocks: _containers.RepeatedCompositeFieldContainer[BlockEntry]
    def __init__(self, version: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[BlockEntry, _Mapping]]] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: bool
    def __init__(self, blocks: bool = ...) -> None: ...

class BlockRows(_message.Message):
    __slots__ = ("table", "blocks", "rows")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    table: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, table: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ..., rows: _Optional[_Iterable[int]] = ...) -> None: ...

class StatsReply(_message.Message):
    __slots__ = ("requests", "refused", "expired", "rows", "bytes", "refused_by", "streams", "started", "latency", "stages", "incarnation", "block_rows")
    class RefusedByEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class StagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Distribution
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Distribution, _Mapping]] = ...) -> None: ...
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_BY_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ROWS_FIELD_NUMBER: _ClassVar[int]
    requests: int
    refused: int
    expired: int
    rows: int
    bytes: int
    refused_by: _containers.ScalarMap[str, int]
    streams: int
    started: float
    latency: Distribution
    stages: _containers.MessageMap[str, Distribution]
    incarnation: str
    block_rows: _containers.RepeatedCompositeFieldContainer[BlockRows]
    def __init__(self, requests: _Optional[int] = ..., refused: _Optional[int] = ..., expired: _Optional[int] = ..., rows: _Optional[int] = ..., bytes: _Optional[int] = ..., refused_by: _Optional[_Mapping[str, int]] = ..., streams: _Optional[int] = ..., started: _Optional[float] = ..., latency: _Optional[_Union[Distribution, _Mapping]] = ..., stages: _Optional[_Mapping[str, Distribution]] = ..., incarnation: _Optional[str] = ..., block_rows: _Optional[_Iterable[_Union[BlockRows, _Mapping]]] = ...) -> None: ...

class Distribution(_message.Message):
    __slots__ = ("bounds", "counts", "seconds")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    seconds: float
    def __init__(self, bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., seconds: _Optional[float] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("request_id", "table", "fingerprint", "epoch", "sent_us", "timeout_ms", "min_version", "row_ids")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROW_IDS_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    table: str
    fingerprint: bytes
    epoch: int
    sent_us: int
    timeout_ms: int
    min_version: int
    row_ids: bytes
    def __init__(self, request_id: _Optional[int] = ..., table: _Optional[str] = ..., fingerprint: _Optional[bytes] = ..., epoch: _Optional[int] = ..., sent_us: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., min_version: _Optional[int] = ..., row_ids: _Optional[bytes] = ...) -> None: ...

class LookupReply(_message.Message):
    __slots__ = ("request_id", "status", "message", "epoch", "version", "first_row", "rows")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    status: Status
    message: str
    epoch: int
    version: int
    first_row: int
    rows: bytes
    def __init__(self, request_id: _Optional[int] = ..., status: _Optional[_Union[Status, str]] = ..., message: _Optional[str] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., first_row: _Optional[int] = ..., rows: _Optional[bytes] = ...) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class RetireReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BlocksRequest(_message.Message):
    __slots__ = ("table", "fingerprint", "blocks")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    table: str
    fingerprint: bytes
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, table: _Optional[str] = ..., fingerprint: _Optional[bytes] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...

class BlockChunk(_message.Message):
    __slots__ = ("block", "version", "digest", "first_row", "rows")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    block: int
    version: int
    digest: bytes
    first_row: int
    rows: bytes
    def __init__(self, block: _Optional[int] = ..., version: _Optional[int] = ..., digest: _Optional[bytes] = ..., first_row: _Optional[int] = ..., rows: _Optional[bytes] = ...) -> None: ...

class SharedTable(_message.Message):
    __slots__ = ("machine", "pid", "arena_fd", "arena_inode", "layout_fd", "layout_inode")
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ARENA_FD_FIELD_NUMBER: _ClassVar[int]
    ARENA_INODE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FD_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_INODE_FIELD_NUMBER: _ClassVar[int]
    machine: str
    pid: int
    arena_fd: int
    arena_inode: int
    layout_fd: int
    layout_inode: int
    def __init__(self, machine: _Optional[str] = ..., pid: _Optional[int] = ..., arena_fd: _Optional[int] = ..., arena_inode: _Optional[int] = ..., layout_fd: _Optional[int] = ..., layout_inode: _Optional[int] = ...) -> None: ...

class OptimizerConfig(_message.Message):
    __slots__ = ("name", "beta1", "beta2", "eps")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPS_FIELD_NUMBER: _ClassVar[int]
    name: str
    beta1: float
    beta2: float
    eps: float
    def __init__(self, name: _Optional[str] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., eps: _Optional[float] = ...) -> None: ...

class BeginRequest(_message.Message):
    __slots__ = ("incarnation", "ranks", "step", "version", "optimizer", "snapshot_uri")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_URI_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    ranks: int
    step: int
    version: int
    optimizer: OptimizerConfig
    snapshot_uri: str
    def __init__(self, incarnation: _Optional[int] = ..., ranks: _Optional[int] = ..., step: _Optional[int] = ..., version: _Optional[int] = ..., optimizer: _Optional[_Union[OptimizerConfig, _Mapping]] = ..., snapshot_uri: _Optional[str] = ...) -> None: ...

class BeginReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("incarnation", "rank", "step", "table", "part", "parts", "learning_rate", "row_ids", "gradients")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    ROW_IDS_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    rank: int
    step: int
    table: str
    part: int
    parts: int
    learning_rate: float
    row_ids: bytes
    gradients: bytes
    def __init__(self, incarnation: _Optional[int] = ..., rank: _Optional[int] = ..., step: _Optional[int] = ..., table: _Optional[str] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ..., learning_rate: _Optional[float] = ..., row_ids: _Optional[bytes] = ..., gradients: _Optional[bytes] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NormRequest(_message.Message):
    __slots__ = ("incarnation", "step", "wait_ms")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    step: int
    wait_ms: int
    def __init__(self, incarnation: _Optional[int] = ..., step: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class NormReply(_message.Message):
    __slots__ = ("squared_norm",)
    SQUARED_NORM_FIELD_NUMBER: _ClassVar[int]
    squared_norm: float
    def __init__(self, squared_norm: _Optional[float] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("incarnation", "step", "scale")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    step: int
    scale: float
    def __init__(self, incarnation: _Optional[int] = ..., step: _Optional[int] = ..., scale: _Optional[float] = ...) -> None: ...

class CommitReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class EndRequest(_message.Message):
    __slots__ = ("incarnation",)
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    def __init__(self, incarnation: _Optional[int] = ...) -> None: ...

class EndReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
