// crop_warp: N crops of uint8 frames, bilinear, as the network's input. The twin is crop_warp of _crop.py.
//
//   Call + Instance[N], frames ->  out (N, 3, height, width) float or Half, RGB, (level - mean) / std
//                              or  out (N, height, width, 3) unsigned char, BGR levels
//
// Compiled with   #define OUT float | Half | unsigned char
//                 #define SAMPLING LINEAR | OPENCV4 | AREA
//
// Threads   One block makes a tile of 32 x 16 pixels of one crop: grid (tiles in x, tiles in y, crops), 256 threads,
//           each two pixels, 8 rows apart. A warp writes 32 neighbours of a row, so its stores fill whole sectors.
//           Coordinates are float64, of which many GPUs do 1/64 of what they do in float32. They are sums of a term of
//           the column and a term of the row: the first 96 threads of a block compute its 32 + 16 terms for x and y,
//           once, as integers in shared memory; each pixel adds two of them.
// Bytes     8 crops of 192x256 in Half write 2.4 MB (float: 4.7 MB) and read each byte of the frame from DRAM at most
//           once, 6.2 MB for the whole of a 1080p frame: the crops' overlaps and the taps that neighbours share come
//           from the caches. At the 3.35 TB/s of an H100 that is a floor of 2.6 us; on an Orin (205 GB/s) 42 us. By the
//           code, instructions bound it first: about 250 for a pixel, of which 4 to 6 load words (12 load bytes where
//           rows are not whole words, or not BGR). AREA also reads all that a crop covers: 12 to 16 words for 4x4 px.
// Exact     OPENCV4 and AREA are the twin's bits. LINEAR rounds its coordinates to 2^-32 px and is black beyond 2^27
//           px; the rest of its arithmetic is the twin's, operation by operation.

#include "sampling.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) crop_warp(
    const Call* __restrict__ call,  // crops of call->count and beyond are left alone
    OUT* __restrict__ out,
    OUT* __restrict__ mirrored,  // the same crops with x reversed, or null
    int width, int height,       // of a crop, px
    float mean_r, float mean_g, float mean_b, float std_r, float std_g, float std_b) {
    __shared__ Terms terms;
    const int crop = blockIdx.z, left = blockIdx.x * TILE_WIDTH, top = blockIdx.y * TILE_HEIGHT;
    const int count = call->count;
    const Instance& instance = call->instances()[crop];  // there is one for each crop that was launched, used or not
    fill(terms, instance.sample, left, top);
    if (crop >= count) return;
    const Frame frame(instance.frame);
    const Normalisation normalisation = {mean_r, mean_g, mean_b, std_r, std_g, std_b};
    int first_x = 0, first_y = 0, level = 0;
    if constexpr (SAMPLING == AREA) {
        first_x = instance.first[0], first_y = instance.first[1];
        const int side = max(frame.width, frame.height);  // once the frame is one pixel, halving it changes nothing
        level = min(instance.halvings, min(MOST_HALVINGS, 32 - __clz(side - 1)));
    }
    __syncthreads();
    const auto wanted = [=](int u, int v) { return u < width && v < height; };
    sample_tile<BLACK>(frame, terms, left, top, level, first_x, first_y, wanted, [=](int u, int v, float (&rgb)[3]) {
        if (u >= width || v >= height) return;
        normalisation.apply(rgb);
        write(out, crop, u, v, width, height, rgb);
        if (mirrored) write(mirrored, crop, width - 1 - u, v, width, height, rgb);
    });
}
