// plan_crops: the detections of B frames become the record of a call, whose crops crop_warp and decode_heatmaps make.
// The twin, and the specification: plan_crops of _plan.py.
//
//   counts, Detection (B, most), FrameRecord[B], a row for each label  ->  Call + Instance[up to `crops`]
//
// Threads  One block of 256. They look at 256 places of detections at a time and count those that get a crop before them
//          (ballots in a warp, one word of shared memory a warp), so crops come frame by frame in the detections' order.
// Bytes    168 for a crop. What it takes is a launch and two or three trips to memory in a row: some microseconds.
// Exact    The twin's bits: MMPose's float32 where it uses float32, float64 elsewhere, no fused operations. hypot of a
//          matrix without rotation is an absolute value; floor(log2) is an exponent.

#include "common.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr double SANE_REACH = 549755813888.0;  // 2^39 px, and MOST_HALVINGS: as in _crop.py
constexpr int MOST_HALVINGS = 62;

struct Geometry {             // CropGeometry of _plan.py
    int width, height;        // of a crop, px
    bool udp, area;
    float padding;
    double cell_x, cell_y;    // crop px from heatmap cell to heatmap cell
};

struct Category { int first, end, model; };

__device__ __forceinline__ bool is_finite(double value) { return fabs(value) < 1.0 / 0.0; }
__device__ __forceinline__ double rounded(double value) { return __double2float_rn(value); }

// One axis of a matrix without rotation: crop px * step + offset is frame px.
struct Axis { double step, offset; };

// The crop's affine as geometry.crop_transforms makes it, and its inverse. False: float32 does not hold it.
__device__ __forceinline__ bool invert(const float (&box)[4], const Geometry& geometry, Axis (&inverse)[2]) {
    const float centre[2] = {(box[0] + box[2]) * 0.5f, (box[1] + box[3]) * 0.5f};
    const float box_width = (box[2] - box[0]) * geometry.padding, box_height = (box[3] - box[1]) * geometry.padding;
    const float aspect = __double2float_rn(static_cast<double>(geometry.width) / geometry.height);
    const float from_height = box_height * aspect;
    const bool wide = box_width > from_height;
    const float scale[2] = {wide ? box_width : from_height, wide ? __fdiv_rn(box_width, aspect) : box_height};
    Axis affine[2];
    if (geometry.udp) {
        for (int i = 0; i < 2; ++i) {
            const double span = scale[i], step = ((i ? geometry.height : geometry.width) - 1) / span;
            affine[i] = {rounded(step), rounded(step * (0.5 * span - centre[i]))};
        }
    } else {
        const float side = __double2float_rn(centre[0] + scale[0] * -0.5);
        const float third = centre[1] + (centre[0] - side);
        const double x = side - static_cast<double>(centre[0]), y = third - static_cast<double>(centre[1]);
        const double unit = 0.5 * geometry.width / (x * y);
        affine[0].step = unit * -y, affine[1].step = unit * x;
        affine[0].offset = 0.5 * geometry.width - affine[0].step * centre[0];
        affine[1].offset = 0.5 * geometry.height - affine[1].step * centre[1];
    }
    const double unit = 1.0 / (affine[0].step * affine[1].step);
    bool good = true;
    for (int i = 0; i < 2; ++i) {
        inverse[i].step = unit * affine[1 - i].step;
        inverse[i].offset = -inverse[i].step * affine[i].offset;
        good &= is_finite(affine[i].step) && is_finite(affine[i].offset);
        good &= is_finite(inverse[i].step) && is_finite(inverse[i].offset);
    }
    return good;
}

// How often "area" halves the frame for a crop pixel of `span` frame px.
__device__ __forceinline__ int halvings_for(double span) {
    const double half = span / 2;  // 2 is LEAST_SPAN of _crop.py
    return half >= 1 ? min(static_cast<int>(__double_as_longlong(half) >> 52) - 1023, MOST_HALVINGS) : 0;
}

// `sample`, `first` and `halvings` as plan_crops of _crop.py finds them.
__device__ __forceinline__ void look(const Axis (&inverse)[2], const Geometry& geometry, Instance& instance) {
    instance.halvings = geometry.area ? halvings_for(fmin(fabs(inverse[0].step), fabs(inverse[1].step))) : 0;
    const double block = __longlong_as_double((instance.halvings + 1023ll) << 52);  // frame px for each halved one
    bool sees = true;
    for (int i = 0; i < 2; ++i) {
        double offset = inverse[i].offset;
        instance.first[i] = 0;
        if (instance.halvings) {
            const double reach = inverse[i].step * ((i ? geometry.height : geometry.width) - 1.0);
            const double low = (fmin(reach, 0.0) + offset) / block, high = (fmax(reach, 0.0) + offset) / block;
            const double cells = ceil((i ? instance.frame.height : instance.frame.width) / block);
            const double begin = fmin(fmax(floor(low) - 1, 0.0), cells), end = fmin(fmax(floor(high) + 3, 0.0), cells);
            sees = sees && fabs(low) < SANE_REACH && fabs(high) < SANE_REACH && begin < end;
            instance.first[i] = static_cast<int>(begin);
            offset = offset / block - ((block - 1) / (2 * block) + instance.first[i]);
        }
        instance.sample[3 * i] = i ? 0 : inverse[i].step / block;
        instance.sample[3 * i + 1] = i ? inverse[i].step / block : 0;
        instance.sample[3 * i + 2] = offset;
    }
    if (sees) return;
    instance.halvings = instance.first[0] = instance.first[1] = 0;
    for (int i = 0; i < 6; ++i) instance.sample[i] = i % 3 == 2 ? -8 : 0;
}

__device__ __forceinline__ void plan(
    const Detection& detection, const Category& category, const Geometry& geometry, Instance& instance) {
    Axis inverse[2];
    instance.channels[0] = category.first, instance.channels[1] = category.end;
    if (invert(detection.box, geometry, inverse)) {
        look(inverse, geometry, instance);
        for (int i = 0; i < 2; ++i) {
            instance.place[3 * i] = i ? 0 : inverse[i].step * geometry.cell_x;
            instance.place[3 * i + 1] = i ? inverse[i].step * geometry.cell_y : 0;
            instance.place[3 * i + 2] = inverse[i].offset;
        }
        return;
    }
    instance.channels[1] = category.first;  // nothing is decoded, and what is not is put to the centre of the box
    instance.halvings = instance.first[0] = instance.first[1] = 0;
    for (int i = 0; i < 6; ++i) {
        const int axis = i / 3;
        instance.sample[i] = i % 3 == 2 ? -8 : 0;
        instance.place[i] = i % 3 == 2 ? (detection.box[axis] + detection.box[axis + 2]) * 0.5f : 0;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) plan_crops(  // grid: 1
    void* __restrict__ found,                      // counts and detections, see detections_of; they are only read
    const FrameRecord* __restrict__ frames,        // (frame_count,)
    const Category* __restrict__ categories,       // (labels,)
    Call* __restrict__ call,                       // `first` is read; count, total and the instances are written
    int frame_count, int most, int labels, int crops, int model,
    int width, int height, int udp, int area, float padding, double cell_x, double cell_y)  // of Geometry
{
    __shared__ int sums[2][WARPS];  // in turns, so that one barrier a round is enough
    const Geometry geometry = {width, height, udp != 0, area != 0, padding, cell_x, cell_y};
    const int* counts = static_cast<const int*>(found);
    const Detection* detections = detections_of(found, frame_count);
    Instance* instances = const_cast<Instance*>(call->instances());
    const int left_out = call->first, warp = threadIdx.x / 32;
    const unsigned before = (1u << threadIdx.x % 32) - 1;  // lanes of this warp
    int total = 0, round = 0;
    for (int first = 0; first < frame_count * most; first += THREADS, round ^= 1) {
        const int place = first + threadIdx.x, owner = place / most;
        bool wanted = place < frame_count * most && place - owner * most < counts[owner];
        Category category = {0, 0, -1};
        if (wanted) {
            const int label = detections[place].label;
            if (label >= 0 && label < labels) category = categories[label];
            wanted = category.model == model;
        }
        const unsigned votes = __ballot_sync(ALL, wanted);
        if (threadIdx.x % 32 == 0) sums[round][warp] = __popc(votes);
        __syncthreads();
        int number = total + __popc(votes & before) - left_out;
        for (int i = 0; i < WARPS; ++i) {
            total += sums[round][i];
            if (i < warp) number += sums[round][i];
        }
        if (!wanted || number < 0 || number >= crops) continue;
        Instance instance;
        instance.frame = frames[owner];
        instance.owner = owner;
        plan(detections[place], category, geometry, instance);
        instances[number] = instance;
    }
    if (threadIdx.x == 0) {
        call->total = total;
        call->count = min(max(total - left_out, 0), crops);
    }
}
