// select_detections: the rows of a detector that count, as boxes of the frame, best first, for B frames at once.
// The twin, and the specification: select_detections of _detections.py.
//
//   rows (B, Q, 6), FrameRecord[B]  ->  count and up to `most` Detection of each frame
//
// Threads  One block of 1024 an image. They look at 1024 rows at a time and collect those that count as keys of score and
//          row, which no two rows share; the order of collecting does not matter, as the keys are sorted (bitonic, in
//          shared memory). Whenever there are more than CANDIDATES keys, the best of them stay: so the best CANDIDATES of
//          all do. Then a thread has a candidate. Greedy: each box that stays is compared with all behind it at once, so
//          there are as many barriers as boxes that stay.
// Bytes    8400 rows of 24 bytes: 0.2 MB, which one multiprocessor reads in some 2 us. What it takes are the barriers:
//          9 for the rows, 15 to sort up to 32 candidates (55 for 1024), one for each box that stays.
// Exact    All arithmetic is float32, each operation as the twin's.

#include "common.cuh"
#include "placement.cuh"

constexpr int THREADS = 1024, CANDIDATES = 1024;  // MAX_CANDIDATES of _detections.py
constexpr unsigned ALL = 0xffffffffu;
constexpr float LARGEST = 0x1.fffffep127f;
static_assert(CANDIDATES <= THREADS, "a thread has a candidate");

struct Rows {  // the rows of one frame
    const float* values;        // (count, 6)
    const unsigned char* keep;  // (labels,) or null
    int labels;                 // labels from this on do not count
    float min_score;
    float left, top, scale_x, scale_y, width, height;  // input px = frame px * scale + offset; of the frame, px

    __device__ float score(int row) const { return __ldg(values + 6ll * row + 4); }

    // The box in the frame; false: the row does not count.
    __device__ bool read(int row, Detection& detection) const {
        const float* value = values + 6ll * row;
        float finite = 0;
#pragma unroll
        for (int i = 0; i < 6; ++i) finite = fabsf(__ldg(value + i)) <= LARGEST ? finite : 1;
        detection.score = score(row);
        detection.label = __float2int_rn(__ldg(value + 5));
        if (finite != 0 || !(detection.score >= min_score)) return false;
        if (detection.label < 0 || detection.label >= labels) return false;
        if (keep && !keep[detection.label]) return false;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float frame = __fdiv_rn(__fsub_rn(__ldg(value + i), i % 2 ? top : left), i % 2 ? scale_y : scale_x);
            detection.box[i] = fminf(fmaxf(frame, 0.f), i % 2 ? height : width);
        }
        return detection.box[0] < detection.box[2] && detection.box[1] < detection.box[3];
    }
};

// Rising keys are falling scores, and of equal scores (0 and -0 are) rising rows.
__device__ __forceinline__ unsigned long long key_of(float score, int row) {
    const unsigned bits = __float_as_uint(score == 0 ? 0.f : score);
    const unsigned rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(~rising) << 32 | static_cast<unsigned>(row);
}

// Sorts `count` keys of shared memory, in room for the next power of two. For the whole block, with barriers around.
__device__ __forceinline__ void sort(unsigned long long* keys, int count) {
    int size = 1;
    while (size < count) size *= 2;
    for (int i = count + threadIdx.x; i < size; i += THREADS) keys[i] = ~0ull;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2)
        for (int apart = run / 2; apart; apart /= 2) {
            for (int pair = threadIdx.x; pair < size / 2; pair += THREADS) {
                const int low = 2 * pair - (pair & (apart - 1)), high = low + apart;
                const unsigned long long first = keys[low], second = keys[high];
                if ((first > second) == !(low & run)) keys[low] = second, keys[high] = first;
            }
            __syncthreads();
        }
}

// Collects the best rows that count, sorted; returns how many there are. For the whole block.
__device__ __forceinline__ int collect(const Rows& rows, int count, unsigned long long* keys) {
    __shared__ int filled;
    const int lane = threadIdx.x % 32;
    int total = 0;  // of keys; every thread knows it
    if (threadIdx.x == 0) filled = 0;
    __syncthreads();
    for (int first = 0; first < count; first += THREADS) {
        const int row = first + threadIdx.x;
        Detection detection;
        const bool counts = row < count && rows.score(row) >= rows.min_score && rows.read(row, detection);
        const unsigned votes = __ballot_sync(ALL, counts);
        int place = 0;
        if (lane == 0 && votes) place = atomicAdd(&filled, __popc(votes));
        place = __shfl_sync(ALL, place, 0);
        if (counts) keys[place + __popc(votes & (1u << lane) - 1)] = key_of(detection.score, row);
        total += __syncthreads_count(counts);
        if (total > CANDIDATES) {
            sort(keys, total);
            total = CANDIDATES;
            if (threadIdx.x == 0) filled = CANDIDATES;
            __syncthreads();
        }
    }
    sort(keys, total);
    return total;
}

// As torchvision computes it; 0 / 0, of areas too small for float32, is not above any limit.
__device__ __forceinline__ float intersection_over_union(const float (&a)[4], float4 b) {
    const float width = fmaxf(__fsub_rn(fminf(a[2], b.z), fmaxf(a[0], b.x)), 0.f);
    const float height = fmaxf(__fsub_rn(fminf(a[3], b.w), fmaxf(a[1], b.y)), 0.f);
    const float shared = __fmul_rn(width, height);
    const float area_a = __fmul_rn(__fsub_rn(a[2], a[0]), __fsub_rn(a[3], a[1]));
    const float area_b = __fmul_rn(__fsub_rn(b.z, b.x), __fsub_rn(b.w, b.y));
    return __fdiv_rn(shared, __fsub_rn(__fadd_rn(area_a, area_b), shared));
}

extern "C" __global__ void __launch_bounds__(THREADS) select_detections(  // grid: frames
    const float* __restrict__ rows,            // (frames, count, 6): x1, y1, x2, y2 (input px), score, label
    const FrameRecord* __restrict__ frames,    // one without width or height has no detections
    const unsigned char* __restrict__ keep,    // (labels,) whether a label counts, or null
    void* __restrict__ out,                    // counts and detections, see detections_of
    int count, int labels, int width, int height, int resize,  // of the input; RESIZES of _placement.py
    int most, float min_score, float nms_iou,  // above 1: no suppression
    int class_agnostic)                        // boxes of different labels suppress each other too
{
    __shared__ unsigned long long keys[CANDIDATES + THREADS];
    __shared__ float4 boxes[CANDIDATES];
    __shared__ int kinds[CANDIDATES];
    __shared__ bool dropped[CANDIDATES];
    const int number = blockIdx.x, own = threadIdx.x;
    const FrameRecord& frame = frames[number];
    int* const kept_of_frame = static_cast<int*>(out) + number;
    Detection* const results = detections_of(out, gridDim.x) + static_cast<long long>(number) * most;
    if (frame.width < 1 || frame.height < 1) {  // alike for the whole block
        if (own == 0) *kept_of_frame = 0;
        return;
    }
    const Picture picture = picture_of(frame.width, frame.height, width, height, resize);
    const Rows all = {
        rows + 6ll * number * count, keep, labels, min_score, float(picture.left), float(picture.top),
        __double2float_rn(__ddiv_rn(picture.width, frame.width)),
        __double2float_rn(__ddiv_rn(picture.height, frame.height)), float(frame.width), float(frame.height)};
    const int candidates = collect(all, count, keys);
    Detection detection;
    if (own < candidates) {
        all.read(static_cast<int>(keys[own] & ALL), detection);
        boxes[own] = make_float4(detection.box[0], detection.box[1], detection.box[2], detection.box[3]);
        kinds[own] = detection.label;
        dropped[own] = false;
    }
    __syncthreads();
    const bool suppress = nms_iou <= 1;
    int kept = suppress ? 0 : min(candidates, most);
    if (!suppress && own < kept) results[own] = detection;
    for (int i = 0; suppress && i < candidates && kept < most; ++i) {
        if (dropped[i]) continue;  // alike for the whole block: nobody writes up to i any more
        if (own == i) results[kept] = detection;
        ++kept;
        if (own > i && own < candidates && (class_agnostic || detection.label == kinds[i]) &&
            intersection_over_union(detection.box, boxes[i]) > nms_iou)
            dropped[own] = true;
        __syncthreads();
    }
    if (own == 0) *kept_of_frame = kept;
}
