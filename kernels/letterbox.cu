// letterbox: B whole uint8 frames, resized to a detector's input. The twin is letterbox of _letterbox.py.
//
//   FrameRecord[B], frames  ->  out (B, 3, height, width) float or Half, RGB, (level - mean) / std
//                           or  out (B, height, width, 3) unsigned char, BGR levels
//
// Compiled with   #define OUT float | Half | unsigned char
//                 #define SAMPLING LINEAR | OPENCV4 | AREA
//
// Threads   As crop_warp: a block makes a tile of 32 x 16 pixels of one input; see sampling.cuh.
// Bytes     A 1080p frame to 640x640 in Half writes 2.5 MB. LINEAR and OPENCV4 look at four pixels for each of the
//           640 x 360: every sector of two rows in three, 4.1 MB of 6.2. At the 3.35 TB/s of an H100 2 us, on an Orin
//           (205 GB/s) 32 us. AREA reads the whole frame where it halves it.
// Exact     As crop_warp. Where the picture lies is found in integers; a step is one division in float64, as the twin's.

#include "placement.cuh"
#include "sampling.cuh"

// Fills what the tile needs: `sample`, input px -> px of the frame halved `level` times, without rotation. Pixel centres
// meet as in cv2.resize: (u + 0.5 - left) * step - 0.5. Two threads, one an axis.
__device__ __forceinline__ void locate(const FrameRecord& frame, const Picture& picture, int level, double* sample) {
    const int axis = threadIdx.x;
    if (axis > 1) return;
    const int side = axis ? frame.height : frame.width, shown = axis ? picture.height : picture.width;
    const double step = __ddiv_rn(side, static_cast<double>(static_cast<long long>(shown) << level));
    sample[3 * axis] = axis ? 0 : step;
    sample[3 * axis + 1] = axis ? step : 0;
    sample[3 * axis + 2] = __dsub_rn(__dmul_rn(0.5 - (axis ? picture.top : picture.left), step), 0.5);
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) letterbox(
    const FrameRecord* __restrict__ frames,  // inputs of frames without width or height are left alone
    OUT* __restrict__ out,
    int width, int height,                   // of an input, px
    int resize, float pad,                   // RESIZES of _placement.py; the level around the picture
    float mean_r, float mean_g, float mean_b, float std_r, float std_g, float std_b) {
    __shared__ Terms terms;
    __shared__ double sample[6];
    const int number = blockIdx.z, left = blockIdx.x * TILE_WIDTH, top = blockIdx.y * TILE_HEIGHT;
    const FrameRecord& record = frames[number];
    if (record.width < 1 || record.height < 1) return;  // alike for the whole block
    const Picture picture = picture_of(record.width, record.height, width, height, resize);
    int level = 0;
    if constexpr (SAMPLING == AREA)
        // 4: a pixel still spans two of what is left after one more halving.
        while (record.width >= 4ll * picture.width << level && record.height >= 4ll * picture.height << level) ++level;
    locate(record, picture, level, sample);
    __syncthreads();
    fill(terms, sample, left, top);
    __syncthreads();
    const Frame frame(record);
    const Normalisation normalisation = {mean_r, mean_g, mean_b, std_r, std_g, std_b};
    const auto shown = [=](int u, int v) {
        return inside(u - picture.left, picture.width) && inside(v - picture.top, picture.height);
    };
    sample_tile<REPEATED>(frame, terms, left, top, level, 0, 0, shown, [=](int u, int v, float (&rgb)[3]) {
        if (u >= width || v >= height) return;
        if (!shown(u, v)) rgb[0] = rgb[1] = rgb[2] = pad;
        normalisation.apply(rgb);
        write(out, number, u, v, width, height, rgb);
    });
}
