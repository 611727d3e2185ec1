// What the kernels share: the records of a call, and half precision without the toolkit's headers.
// NVRTC compiles these files on machines that have a driver and CuPy and nothing else, so nothing is included here.
#pragma once

struct FrameRecord {          // FRAME of _call.py, 48 bytes
    const unsigned char* pixels;  // channel 0 (blue) of the window's first pixel
    long long row_stride;     // bytes; any of the three may be negative, channel_stride is 0 for grey
    long long pixel_stride;
    long long channel_stride;
    int width, height;        // of the whole frame, px
    int left, top;            // of the window: the part of the frame that is in device memory, px
};

struct Instance {             // INSTANCE of _call.py, 168 bytes
    FrameRecord frame;        // that it is cut from
    double sample[6];         // (2, 3) crop px -> px of the frame, halved `halvings` times and moved to `first`
    double place[6];          // (2, 3) heatmap cells -> what the decoder writes
    int first[2];             // (x, y) of the halved frame that `sample` calls (0, 0)
    int halvings;             // 0 but for sampling "area"
    int channels[2];          // [begin, end): the heatmaps to decode
    int owner;                // index of the frame in the call
};

struct alignas(8) Call {      // HEADER of _call.py, 16 bytes; the instances follow it
    int count;                // crops of this call
    int total;                // crops that there would be with room for all
    int first;                // plan_crops leaves out so many crops: those that an earlier call has made
    int reserved;
    __device__ const Instance* instances() const { return reinterpret_cast<const Instance*>(this + 1); }
};

struct Detection {            // DETECTION of _call.py, 24 bytes
    float box[4];             // xyxy, frame px, clipped to the frame
    float score;
    int label;
};

// The detections of so many frames: a count for each, rounded up to 8 bytes, then `most` for each.
__device__ __forceinline__ Detection* detections_of(void* buffer, int frames) {
    return reinterpret_cast<Detection*>(static_cast<char*>(buffer) + (4ll * frames + 7) / 8 * 8);
}

static_assert(sizeof(FrameRecord) == 48 && sizeof(Instance) == 168 && sizeof(Call) == 16 && sizeof(Detection) == 24,
              "the layouts of _call.py");

// IEEE half precision as its 16 bits.
struct Half { unsigned short bits; };

#ifdef EDGEPOSE_CPU_EMU       // tests/cuda_on_cpu brings its own
__device__ float to_float(Half value);
__device__ Half to_half(float value);
#else
__device__ __forceinline__ float to_float(Half value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}
__device__ __forceinline__ Half to_half(float value) {
    Half result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}
#endif
__device__ __forceinline__ float to_float(float value) { return value; }
