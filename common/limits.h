#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

// Every bound of every queue, message, cache and string, each with its reason. Past a bound the
// answer is RESOURCE_EXHAUSTED (ours is full) or INVALID_ARGUMENT (the caller asked too much).
namespace conclave::limits {

// ---- wire ----
// One ExpertDispatch or ExpertCombine frame. Larger micro-batches are chunked, so that one layer
// of one worker never holds back another worker's frames for long: 4 MiB take ~1 ms on loopback.
inline constexpr size_t kMaxExpertFrameBytes = 4 << 20;
// gRPC's receive limit for every channel and server: a frame, its header, and slack.
inline constexpr int kMaxGrpcMessageBytes = 16 << 20;
// Frames of one stream that a shard holds before it stops reading (gRPC then pushes back).
inline constexpr int kMaxQueuedFramesPerStream = 256;
// The same bound in bytes, a dispatch counted with its answer: three of the largest frames at
// top-8, so that the next is there when one has been computed.
inline constexpr size_t kMaxQueuedBytesPerStream = 128 << 20;
// Dispatches of all streams that wait for the experts: a full stream of each of 16 workers.
inline constexpr int kMaxQueuedDispatches = 4096;
// Pairs that a shard computes at once. Bounds its intermediates: 16,384 pairs of Qwen3-235B-A22B
// take 16,384 * (4,096 * 2 + 3,072 * 4 + 1,536 * 2 + 4,096 * 4) bytes = 624 MiB.
inline constexpr int64_t kMaxExpertBatchPairs = 16384;
// One direction of the shared memory between a worker and a shard of one host, which takes twice
// this: a frame of the largest size and another that the reader has not taken yet.
inline constexpr size_t kSharedRingBytes = 16 << 20;
// One transfer over NCCL: a frame of the largest size goes in one. Each of a link's buffers takes
// this on the GPU and again in pinned memory.
inline constexpr size_t kNcclFrameBytes = kMaxExpertFrameBytes;
// Transfers under way each way: one on the wire, one being filled or emptied. A link of the default
// size takes 16 MiB on the GPU.
inline constexpr int kNcclFrames = 2;
// A peer may ask for less, but not for so little that a prefill goes in thousands of transfers, nor
// for more buffers than anyone could fill.
inline constexpr size_t kMinNcclFrameBytes = 4096;
inline constexpr int kMaxNcclFrames = 16;
// Frames of one direction of an NCCL link that the receiver has not taken: eight of the largest.
inline constexpr size_t kNcclWindowBytes = 32 << 20;
// Buffers of tensors that a process keeps although nobody uses them now.
inline constexpr size_t kMaxIdleTensorBytes = 256 << 20;
// Addresses of one DNS name; an answer of more is cut. Each is a peer with a connection that is
// asked how it is twice a second: of 256 that is 512 small calls a second.
inline constexpr size_t kMaxPeersOfName = 256;

// ---- public API ----
// A prompt of 262,144 tokens is at most ~1 MiB of text; ten times that is not a chat.
inline constexpr size_t kMaxPromptBytes = 8 << 20;
inline constexpr int kMaxMessages = 4096;
inline constexpr int kMaxTools = 512;
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 1024;
inline constexpr int kMaxStopIds = 64;
inline constexpr int kMaxTopLogprobs = 20;
inline constexpr int kMaxLogitBiases = 1024;
inline constexpr int kMaxDetokenizeIds = 1 << 18;  // the longest context of the family
inline constexpr int kMaxForcedIds = 256;          // the early-stop text; Qwen3's default is 24 ids
inline constexpr size_t kMaxRequestIdBytes = 128;

// ---- router ----
// Requests admitted and not finished, running or waiting. A waiting one costs its prompt ids
// (4 bytes each) and one gRPC stream.
inline constexpr int kDefaultMaxInflightRequests = 4096;
// Attempts at one request on different workers before it fails.
inline constexpr int kMaxWorkerAttempts = 4;
// Chunks of prompts whose worker the router remembers: 8 million tokens, about 12 MiB.
inline constexpr size_t kMaxPrefixMapChunks = 1 << 17;
// A conversation with more text is not kept beside its request for a prefill ahead: it would be
// there twice.
inline constexpr size_t kMaxPrefillAheadBytes = 1 << 20;
// A request with more text is tokenized outside gRPC's threads: 64 KiB take ~30 ms.
inline constexpr size_t kMaxInlinePromptBytes = 64 << 10;

// ---- HTTP ----
// A stream in flight holds one connection, besides those kept alive between requests. Each costs a
// file descriptor and about 10 KiB.
inline constexpr int kMaxHttpConnections = 16384;
inline constexpr size_t kMaxHttpHeaderBytes = 64 << 10;
// kMaxPromptBytes of text in which JSON may escape every other byte.
inline constexpr size_t kMaxHttpBodyBytes = 16 << 20;
// Values of one JSON text of a client or of the model. One takes 88 bytes in memory and may be two
// bytes of text; the longest prompt of ids is a quarter of this.
inline constexpr int kMaxJsonValues = 1 << 20;
inline constexpr int kMaxHttpChoices = 16;  // n of one request: each is a request in flight

// ---- worker ----
inline constexpr int kDefaultMaxRunningSequences = 256;  // rows of a decode step
inline constexpr int kDefaultMaxWaitingSequences = 4096;
// Tokens of one step: prefill chunks and decodes together. Bounds the activations' memory.
inline constexpr int kDefaultMaxStepTokens = 512;
inline constexpr int kMaxStepTokens = 8192;
// More than fits into any host: at Qwen3-0.6B's 112 KiB a token, 448 TiB.
inline constexpr int64_t kMaxKvCacheTokens = int64_t{1} << 32;
inline constexpr int kKvBlockTokens = 16;
// Requests that only fill the prefix cache, which wait until a worker has nothing else to do. They
// hold no KV block while they wait, and the oldest of more would rarely get its turn.
inline constexpr int kMaxBackgroundRequests = 16;
// Tokens of one of their steps: a request that comes in the middle waits for hardly longer than a
// step that decodes one token, for up to so many rows both are bound by reading the weights.
inline constexpr int kBackgroundStepTokens = 32;
// Steps of which the events are not yet handed to their streams. The thread that does it is hardly
// ever one behind; if it cannot keep up, the engine waits.
inline constexpr int kMaxUnsentSteps = 8;
// Token events one request may have unsent before its sequence pauses for a slow reader.
inline constexpr int kMaxUnsentTokens = 65536;

// Combines that a worker has received and not looked at. It asks for one layer at a time, which is
// answered in far fewer; more are sent by no shard of ours.
inline constexpr int kMaxUnreadCombines = 16384;

// ---- model files ----
inline constexpr size_t kMaxSafetensorsHeaderBytes = 100 << 20;  // the format's own limit
inline constexpr size_t kMaxJsonFileBytes = 64 << 20;            // tokenizer.json is 11 MB
inline constexpr int kMaxExperts = 1024;
inline constexpr int kMaxLayers = 512;
// Shapes far past any released Qwen3 (5120, 151936, 64, 128), small enough that no product of two
// overflows int64 and that a lying config cannot ask for all memory.
inline constexpr int kMaxHiddenSize = 65536;  // also of intermediate_size, moe_intermediate_size
inline constexpr int kMaxVocabSize = 1 << 20;
inline constexpr int kMaxAttentionHeads = 1024;
inline constexpr int kMaxHeadDim = 512;
inline constexpr int kMaxContextTokens = 1 << 22;

// Requests that a worker has yet to name to a shard, for its log: what a second of short requests
// brings. More are not named.
inline constexpr size_t kMaxAnnouncedRequests = 1024;

// ---- load generator ----
// A record of a request takes 16 bytes a token: 2^25 of them are 512 MiB.
inline constexpr int64_t kMaxBenchTokens = int64_t{1} << 25;
inline constexpr int64_t kMaxBenchRequests = 1'000'000;
// Streams in flight; a router admits kDefaultMaxInflightRequests, and more show how it refuses.
inline constexpr int kMaxBenchConcurrency = 4 * kDefaultMaxInflightRequests;

// ---- time ----
inline constexpr absl::Duration kDefaultRequestDeadline = absl::Hours(1);
// A client's deadline began when it sent the call and ours when the call arrived, so that its
// cancellation at the deadline comes before ours by the time the call was on its way.
inline constexpr absl::Duration kDeadlineSkew = absl::Milliseconds(100);
// A prefill ahead that has not had its turn after this is of no more use: the conversation has gone
// on, or it will not.
inline constexpr absl::Duration kPrefillAheadDeadline = absl::Minutes(2);
inline constexpr absl::Duration kDescribeDeadline = absl::Seconds(5);
// A DNS name is asked anew so often: a new replica is found as soon as that, which is also how long
// Kubernetes' DNS lets a record be kept.
inline constexpr absl::Duration kNameRefresh = absl::Seconds(5);
// And that soon after a peer was lost, or while a name has no address.
inline constexpr absl::Duration kNameRefreshAfterLoss = absl::Seconds(1);
inline constexpr absl::Duration kResolveDeadline = absl::Seconds(5);
inline constexpr absl::Duration kControlDeadline = absl::Seconds(5);
// A shard that has not answered a dispatch after this is taken for lost.
inline constexpr absl::Duration kDispatchTimeout = absl::Seconds(30);
// NCCL finds its ways between two GPUs in one to a few seconds.
inline constexpr absl::Duration kNcclSetupTimeout = absl::Seconds(30);
// A transfer starts when both ends know of it and 4 MiB take 40 us over NVLink, 1 ms over PCIe: the
// rest is for a GPU whose multiprocessors are all taken by a prefill.
inline constexpr absl::Duration kNcclTransferTimeout = absl::Seconds(5);
// Between two attempts at a link over NCCL that failed while its shard is well: a communicator
// costs both ends about a second to set up, and the frames have another way meanwhile.
inline constexpr absl::Duration kLinkRetryPause = absl::Seconds(5);
// How long a layer waits for a lost shard to return before its requests fail.
inline constexpr absl::Duration kDefaultShardWait = absl::Seconds(60);
// Longer than openai-python keeps an idle connection (5 s), so that the client closes first.
inline constexpr absl::Duration kHttpHeaderTimeout = absl::Seconds(60);
inline constexpr absl::Duration kHttpBodyTimeout = absl::Seconds(60);
// A client that reads nothing for so long is gone.
inline constexpr absl::Duration kHttpWriteTimeout = absl::Minutes(5);
inline constexpr absl::Duration kDefaultDrainDeadline = absl::Seconds(30);
// A day, longer than any answer takes. The same for every server: `conclave up` hands its own on.
inline constexpr double kMaxDrainSeconds = 86'400;
// With the device lost there is nothing left to compute, only to say so to peers.
inline constexpr absl::Duration kLostDeviceDrain = absl::Seconds(2);

}  // namespace conclave::limits
