// How crop_warp and letterbox look at a frame: coordinates, taps, halving, blending, writing.
// The twins are _sample_linear and _sample_opencv4 of _crop.py, and _halve.
//
// Needs  #define OUT float | Half | unsigned char
//        #define SAMPLING LINEAR | OPENCV4 | AREA
#pragma once
#include "common.cuh"

enum Sampling { LINEAR, OPENCV4, AREA };

constexpr int TILE_WIDTH = 32, TILE_HEIGHT = 16, THREADS = 256, PASSES = TILE_WIDTH * TILE_HEIGHT / THREADS;
constexpr int ROWS = TILE_HEIGHT / PASSES;               // of a tile that are made at once
constexpr int TOGETHER = SAMPLING == AREA ? 1 : PASSES;  // pixels that a thread loads before it uses one of them
constexpr unsigned ALL = 0xffffffffu;                    // lanes of a warp
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int RESIDENT = 4;                              // blocks that a multiprocessor holds: all of its 1024 threads
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int RESIDENT = SAMPLING == AREA ? 4 : 5;       // at 48 registers a thread AREA would spill here
#else
constexpr int RESIDENT = 5;                              // at 48 registers a thread
#endif

// ---- The frame: pixels as words 0xxxRRGGBB, of which the top byte may hold anything --------------------------------

struct Frame {
    long long origin;  // the address that pixel (0, 0) would have; it may lie outside of the window
    long long row_stride, pixel_stride, channel_stride;
    int width, height;
    bool words;   // BGR, packed or padded to a word (BGRA), in rows of whole aligned 32-bit words, which may be read
    bool padded;

    __device__ explicit Frame(const FrameRecord& record)
        : row_stride(record.row_stride), pixel_stride(record.pixel_stride), channel_stride(record.channel_stride),
          width(record.width), height(record.height) {
        const long long pixels = reinterpret_cast<long long>(record.pixels);
        origin = pixels - record.top * row_stride - record.left * pixel_stride;
        const bool aligned = ((pixels | row_stride) & 3) == 0;
        padded = pixel_stride == 4;
        words = aligned && channel_stride == 1 && (padded || pixel_stride == 3);
    }
    __device__ const unsigned char* address(int x, int y) const {
        return reinterpret_cast<const unsigned char*>(origin + y * row_stride + x * pixel_stride);
    }
    __device__ unsigned pixel(int x, int y) const {
        const unsigned char* blue = address(x, y);
        const unsigned char* green = blue + channel_stride;
        return __ldg(blue) | __ldg(green) << 8 | __ldg(green + channel_stride) << 16;
    }
};

__device__ bool inside(int cell, int limit) { return static_cast<unsigned>(cell) < static_cast<unsigned>(limit); }
__device__ int clamp(int cell, int limit) { return min(max(cell, 0), limit - 1); }
__device__ int halved(int size, int level) { return (size + (1 << level) - 1) >> level; }

// 32 bits of the 64 of high and low, from bit `shift` (0 to 31) on.
__device__ __forceinline__ unsigned window(unsigned low, unsigned high, int shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> shift);
}

// Four neighbours of a packed row from its aligned words, of which none lies beyond the last byte.
__device__ __forceinline__ void read_row(const unsigned char* first, unsigned (&pixels)[4]) {
    const int offset = static_cast<int>(reinterpret_cast<unsigned long long>(first) & 3), shift = 8 * offset;
    const unsigned* word = reinterpret_cast<const unsigned*>(first - offset);
    const unsigned a = __ldg(word), b = __ldg(word + 1), c = __ldg(word + 2), d = offset ? __ldg(word + 3) : 0;
    const unsigned low = window(a, b, shift), middle = window(b, c, shift), high = window(c, d, shift);
    pixels[0] = low, pixels[1] = window(low, middle, 24), pixels[2] = window(middle, high, 16), pixels[3] = high >> 8;
}

// ---- Where a pixel of the crop looks ------------------------------------------------------------------------------

// A coordinate is (column term + row term): 1/1024 px under OPENCV4 and AREA, 2^-32 px under LINEAR.
__device__ __forceinline__ long long to_term(double value, bool of_column) {
    if constexpr (SAMPLING == LINEAR) {
        // A term beyond 2^27 px puts its pixel far outside of any frame, whatever the other term is.
        if (!(fabs(value) < 134217728.0)) {
            const long long outside = 1ll << (of_column ? 62 : 60);
            return value > 0 ? outside : -outside;
        }
        return __double2ll_rn(__dmul_rn(value, 4294967296.0));
    } else {
        if (!(fabs(value) < 1099511627776.0)) return value > 0 ? 1ll << 50 : -(1ll << 50);  // 2^40 px: the twin's clip
        // Beside 1.5 * 2^42 a float64 has room for multiples of 1/1024 only: the sum is rounded to them, half to even.
        const double beside = 6597069766656.0;
        return __double_as_longlong(__dadd_rn(value, beside)) - __double_as_longlong(beside);
    }
}

struct Terms {
    long long column[2][TILE_WIDTH], row[2][TILE_HEIGHT];  // [x or y of the frame][pixel of the tile]
};

// The first 96 threads: one term each, from the (2, 3) matrix crop px -> px of the (halved) frame.
__device__ __forceinline__ void fill(Terms& terms, const double* sample, int left, int top) {
    const int i = threadIdx.x;
    if (i < 2 * TILE_WIDTH) {
        const int axis = i / TILE_WIDTH, column = i % TILE_WIDTH;
        terms.column[axis][column] = to_term(__dmul_rn(sample[3 * axis], left + column), true);
    } else if (i < 2 * (TILE_WIDTH + TILE_HEIGHT)) {
        const int axis = (i - 2 * TILE_WIDTH) / TILE_HEIGHT, row = i % TILE_HEIGHT;
        const double value = __dadd_rn(__dmul_rn(sample[3 * axis + 1], top + row), sample[3 * axis + 2]);
        terms.row[axis][row] = to_term(value, false) + (SAMPLING == LINEAR ? 0 : 16);  // 16: half of 1/32 px
    }
}

struct Position {
    long long cell;     // of the first tap
    unsigned fraction;  // to the second: 1/32 px, under LINEAR 2^-32 px
    __device__ explicit Position(long long sum) {
        cell = sum >> (SAMPLING == LINEAR ? 32 : 10);
        fraction = SAMPLING == LINEAR ? static_cast<unsigned>(sum) : static_cast<unsigned>(sum >> 5) & 31;
    }
    // Whether one of the two taps lies in [0, limit).
    __device__ bool sees(int limit) const { return static_cast<unsigned long long>(cell + 1) <= limit; }
};

// ---- The four taps of a pixel: (x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1) ---------------------------------------

enum Border { BLACK, REPEATED };  // what a tap outside of the frame is: 0, or the nearest pixel

// As they are loaded, so that no instruction waits for them yet: two rows of two pixels.
struct Loads {
    unsigned upper[3] = {}, lower[3] = {};
    int shift = 0;  // packed from this bit on; 32: a word for each

    template <Border BORDER> __device__ __forceinline__ void start(const Frame& frame, int x, int y) {
        if (frame.words && x >= 0 && y >= 0 && x + 1 < frame.width && y + 1 < frame.height) {
            const unsigned char* first = frame.address(x, y);
            const int offset = static_cast<int>(reinterpret_cast<unsigned long long>(first) & 3);
            const unsigned* word = reinterpret_cast<const unsigned*>(first - offset);
            const unsigned* below = reinterpret_cast<const unsigned*>(first - offset + frame.row_stride);
            upper[0] = __ldg(word), upper[1] = __ldg(word + 1), lower[0] = __ldg(below), lower[1] = __ldg(below + 1);
            if (offset == 3) upper[2] = __ldg(word + 2), lower[2] = __ldg(below + 2);
            shift = frame.padded ? 32 : 8 * offset;
            return;
        }
        shift = 32;
        if constexpr (BORDER == REPEATED) {
            const int left = clamp(x, frame.width), right = clamp(x + 1, frame.width);
            const int row = clamp(y, frame.height), lower_row = clamp(y + 1, frame.height);
            upper[0] = frame.pixel(left, row), upper[1] = frame.pixel(right, row);
            lower[0] = frame.pixel(left, lower_row), lower[1] = frame.pixel(right, lower_row);
            return;
        }
        const bool left = inside(x, frame.width), right = inside(x + 1, frame.width);
        if (inside(y, frame.height)) {
            if (left) upper[0] = frame.pixel(x, y);
            if (right) upper[1] = frame.pixel(x + 1, y);
        }
        if (inside(y + 1, frame.height)) {
            if (left) lower[0] = frame.pixel(x, y + 1);
            if (right) lower[1] = frame.pixel(x + 1, y + 1);
        }
    }
    __device__ __forceinline__ void finish(unsigned (&taps)[4]) const {
        split(upper, taps[0], taps[1]);
        split(lower, taps[2], taps[3]);
    }
    __device__ __forceinline__ void split(const unsigned (&words)[3], unsigned& first, unsigned& second) const {
        const unsigned next = window(words[1], words[2], shift);
        first = shift == 32 ? words[0] : window(words[0], words[1], shift);
        second = shift == 32 ? words[1] : window(first, next, 24);
    }
};

// Means of 2x2, half rounded up, all three channels in one word. Sums of four need 10 bits: either two words (red and
// blue 16 bits apart, green) or one word with 10-bit fields.
struct Sum {
    unsigned red_blue = 0, green = 0;
    __device__ Sum& add(unsigned pixel) {
        red_blue += pixel & 0x00ff00ff, green += pixel & 0x0000ff00;
        return *this;
    }
    __device__ unsigned mean() const {
        return ((red_blue + 0x00020002) >> 2 & 0x00ff00ff) | ((green + 0x00000200) >> 2 & 0x0000ff00);
    }
};
__device__ unsigned spread(unsigned pixel) {
    return (pixel & 0xff) | (pixel & 0xff00) << 2 | (pixel & 0xff0000) << 4;
}
__device__ unsigned gather(unsigned fields) {
    return (fields & 0xff) | (fields >> 2 & 0xff00) | (fields >> 4 & 0xff0000);
}
__device__ unsigned mean_of_sum(unsigned fields) { return (fields + 0x00200802) >> 2 & 0x0ff3fcff; }

__device__ __forceinline__ void push(unsigned (&values)[4], unsigned value) {
    values[0] = values[1], values[1] = values[2], values[2] = values[3], values[3] = value;
}

// Four pixels of the frame halved once, (x, y) to (x + 1, y + 1): 4x4 of the frame. Coordinates outside of the halved
// frame are moved to its border, and an odd last line of the frame is doubled.
__device__ __forceinline__ void read_halved(const Frame& frame, int x, int y, unsigned (&means)[4]) {
    if (frame.words && !frame.padded && x >= 0 && y >= 0 && 2 * x + 4 <= frame.width && 2 * y + 4 <= frame.height) {
        const unsigned char* first = frame.address(2 * x, 2 * y);
        unsigned pixels[4][4];
#pragma unroll
        for (int row = 0; row < 4; ++row) read_row(first + row * frame.row_stride, pixels[row]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int row = i / 2 * 2, column = i % 2 * 2;
            means[i] = Sum().add(pixels[row][column]).add(pixels[row][column + 1])
                .add(pixels[row + 1][column]).add(pixels[row + 1][column + 1]).mean();
        }
        return;
    }
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
        const int column = 2 * clamp(x + i % 2, halved(frame.width, 1)), right = min(column + 1, frame.width - 1);
        const int row = 2 * clamp(y + i / 2, halved(frame.height, 1)), lower = min(row + 1, frame.height - 1);
        push(means, Sum().add(frame.pixel(column, row)).add(frame.pixel(right, row))
            .add(frame.pixel(column, lower)).add(frame.pixel(right, lower)).mean());
    }
}

// One pixel (x, y) of the frame halved `level` >= 2 times: nested means, over its 4x4 pieces in Z-order. Alone a thread
// does level 2 and 3; with SHARED (level >= 4) the 16 lanes of half a warp take a piece each, and all 32 must be here.
constexpr int MOST_HALVINGS = 18;  // frames have at most 2^18 px a side, which are one pixel then
template <bool SHARED>
__device__ __forceinline__ unsigned read_area(const Frame& frame, int level, int x, int y, int lane) {
    unsigned value = 0, sum = 0;  // SHARED: lane i of the half keeps the sum that is under way i levels further up
    x = clamp(x, halved(frame.width, level)), y = clamp(y, halved(frame.height, level));
    const unsigned pieces = 1u << 2 * (level - (SHARED ? 4 : 2));
#pragma unroll 1
    for (unsigned piece = 0; piece < pieces; ++piece) {
        const unsigned path = SHARED ? piece << 4 | lane % 16 : piece;
        int column = x, row = y;
#pragma unroll 1
        for (int to = level - 1; to >= 2; --to) {  // to the halves that the path names; an odd last line is doubled
            const unsigned step = path >> 2 * (to - 2);
            column = min(2 * column + static_cast<int>(step & 1), halved(frame.width, to) - 1);
            row = min(2 * row + static_cast<int>(step >> 1 & 1), halved(frame.height, to) - 1);
        }
        unsigned means[4];
        read_halved(frame, 2 * column, 2 * row, means);
        value = spread(Sum().add(means[0]).add(means[1]).add(means[2]).add(means[3]).mean());
        if constexpr (SHARED) {
            for (int bit = 1; bit <= 4; bit *= 4) {
                value += __shfl_xor_sync(ALL, value, bit);
                value = mean_of_sum(value + __shfl_xor_sync(ALL, value, 2 * bit));
            }
            for (int i = 0;; ++i) {  // the fourth of four completes the next level
                const unsigned total = value + __shfl_sync(ALL, sum, i, 16);
                const bool complete = (piece >> 2 * i & 3) == 3;
                if (lane % 16 == i) sum = complete ? 0 : total;
                if (!complete) break;
                value = mean_of_sum(total);
            }
        } else {
            sum += value;
        }
    }
    return gather(SHARED || pieces == 1 ? value : mean_of_sum(sum));
}

// The taps in the frame halved `level` times. All lanes of a warp come here; `seen`: one of the lane's four taps is in
// the halved frame, so what the other three read after clamping is a pixel that the crop covers, too.
template <Border BORDER>
__device__ __forceinline__ void read_area_taps(
    const Frame& frame, int level, int x, int y, bool seen, unsigned (&taps)[4]) {
    const int width = halved(frame.width, level), height = halved(frame.height, level);
    if (level < 4) {
        if (!seen) return;
        if (level == 1) {
            read_halved(frame, x, y, taps);
        } else {
#pragma unroll 1
            for (int i = 0; i < 4; ++i) push(taps, read_area<false>(frame, level, x + i % 2, y + i / 2, 0));
        }
    } else {
        // Few crop pixels see much of the frame each: the warp goes through them together.
        const int lane = threadIdx.x % 32;
        for (unsigned rest = __ballot_sync(ALL, seen); rest; rest &= rest - 1) {
            const int owner = __ffs(rest) - 1;
            const int column = __shfl_sync(ALL, x, owner), row = __shfl_sync(ALL, y, owner);
#pragma unroll 1
            for (int i = 0; i < 2; ++i) {
                unsigned left = 0, right = 0;
                if (BORDER == REPEATED || inside(row + i, height)) {
                    const unsigned value = read_area<true>(frame, level, column + lane / 16, row + i, lane);
                    left = __shfl_sync(ALL, value, 0), right = __shfl_sync(ALL, value, 16);
                }
                if (lane == owner) push(taps, left), push(taps, right);
            }
        }
    }
    if constexpr (BORDER == REPEATED) return;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (!inside(x + (i & 1), width) || !inside(y + (i >> 1), height)) taps[i] = 0;
}

// ---- Blending and writing -----------------------------------------------------------------------------------------

// One channel of the four taps: a whole level, or under LINEAR any float, as the twin sums it up.
__device__ __forceinline__ float blend(
    const unsigned (&taps)[4], int channel, const unsigned (&whole)[4], const float (&weights)[4]) {
    if constexpr (SAMPLING == LINEAR) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            sum = __fadd_rn(sum, __fmul_rn(static_cast<float>(taps[i] >> 8 * channel & 255), weights[i]));
        return sum;
    } else {
        unsigned sum = 512;  // of 1024: half is rounded up
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += (taps[i] >> 8 * channel & 255) * whole[i];
        return static_cast<float>(sum >> 10);
    }
}

// The weights of the four taps: in 1/1024, or under LINEAR in float.
__device__ __forceinline__ void weigh(unsigned x, unsigned y, unsigned (&whole)[4], float (&weights)[4]) {
    if constexpr (SAMPLING == LINEAR) {
        const float right = __fmul_rn(static_cast<float>(x), 0x1p-32f);
        const float lower = __fmul_rn(static_cast<float>(y), 0x1p-32f);
        const float left = __fsub_rn(1.f, right), upper = __fsub_rn(1.f, lower);
        weights[0] = __fmul_rn(left, upper), weights[1] = __fmul_rn(right, upper);
        weights[2] = __fmul_rn(left, lower), weights[3] = __fmul_rn(right, lower);
    } else {
        whole[3] = x * y, whole[2] = 32 * y - whole[3];
        whole[1] = 32 * x - whole[3], whole[0] = 1024 - 32 * (x + y) + whole[3];
    }
}

__device__ void convert(float value, float& out) { out = value; }
__device__ void convert(float value, Half& out) { out = to_half(value); }
__device__ void convert(float value, unsigned char& out) { out = static_cast<unsigned char>(__float2int_rn(value)); }

__device__ __forceinline__ void write(OUT* out, int crop, int u, int v, int width, int height, const float (&rgb)[3]) {
    const long long plane = static_cast<long long>(height) * width;
    const long long place = static_cast<long long>(v) * width + u;
    if constexpr (sizeof(OUT) == 1) {
        OUT* pixel = out + 3 * (crop * plane + place);
        convert(rgb[2], pixel[0]), convert(rgb[1], pixel[1]), convert(rgb[0], pixel[2]);
    } else {
        OUT* pixel = out + 3 * crop * plane + place;
        convert(rgb[0], pixel[0]), convert(rgb[1], pixel[plane]), convert(rgb[2], pixel[2 * plane]);
    }
}

// ---- A tile -------------------------------------------------------------------------------------------------------

// The pixels of a block's tile, from (left, top) of the crop on, each thread its own. wanted(u, v): whether a pixel of
// the crop looks at the frame, halved `level` times from (first_x, first_y) on; emit(u, v, rgb) gets what it saw, or for
// one that is not wanted nothing of use. All threads of a block must come here.
template <Border BORDER, class Wanted, class Emit>
__device__ __forceinline__ void sample_tile(
    const Frame& frame, const Terms& terms, int left, int top, int level, int first_x, int first_y, Wanted wanted,
    Emit emit) {
    const int frame_width = halved(frame.width, level), frame_height = halved(frame.height, level);
    const int column = threadIdx.x % TILE_WIDTH, u = left + column;
#pragma unroll 1
    for (int pass = 0; pass < PASSES; pass += TOGETHER) {
        Loads loads[TOGETHER];
        unsigned fraction_x[TOGETHER], fraction_y[TOGETHER], taps[4] = {};
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            const int row = threadIdx.x / TILE_WIDTH + (pass + i) * ROWS;
            Position x(terms.column[0][column] + terms.row[0][row]), y(terms.column[1][column] + terms.row[1][row]);
            fraction_x[i] = x.fraction, fraction_y[i] = y.fraction;
            x.cell += first_x, y.cell += first_y;
            const bool seen = wanted(u, top + row) && x.sees(frame_width) && y.sees(frame_height);
            const int cell_x = static_cast<int>(x.cell), cell_y = static_cast<int>(y.cell);
            if (SAMPLING == AREA && level)
                read_area_taps<BORDER>(frame, level, cell_x, cell_y, seen, taps);
            else if (seen)
                loads[i].template start<BORDER>(frame, cell_x, cell_y);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; ++i) {
            if (SAMPLING != AREA || !level) loads[i].finish(taps);
            unsigned whole[4];
            float weights[4], rgb[3];
            weigh(fraction_x[i], fraction_y[i], whole, weights);
#pragma unroll
            for (int channel = 0; channel < 3; ++channel) rgb[channel] = blend(taps, 2 - channel, whole, weights);
            emit(u, top + static_cast<int>(threadIdx.x) / TILE_WIDTH + (pass + i) * ROWS, rgb);
        }
    }
}

struct Normalisation {  // of RGB levels, 0-255; of no meaning where OUT is unsigned char
    float mean_r, mean_g, mean_b, std_r, std_g, std_b;
    __device__ __forceinline__ void apply(float (&rgb)[3]) const {
        if constexpr (sizeof(OUT) > 1) {
            rgb[0] = __fdiv_rn(__fsub_rn(rgb[0], mean_r), std_r);
            rgb[1] = __fdiv_rn(__fsub_rn(rgb[1], mean_g), std_g);
            rgb[2] = __fdiv_rn(__fsub_rn(rgb[2], mean_b), std_b);
        }
    }
};
