// Renders the drawn views of an image (VIEW in dino_ssl/data/crops.py) for the `fused` renderer; called through ctypes.
//
// The arithmetic is in crops_kernel.h, compiled here for the machine's basic instructions and, by GCC on x86, also for
// AVX2 and AVX-512. C++14 with GCC's vector types; no dependency.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define STEP static  // a stage of a kernel; `static __attribute__((noinline))` shows it in a profile

namespace {

enum Operation { BRIGHTNESS, CONTRAST, SATURATION, HUE };

struct View {  // the NumPy type VIEW, field by field
    double box[4];
    double factors[4];
    double blur_radius;
    int8_t order[4];
    bool flip, grayscale, solarize;
};
static_assert(sizeof(View) == 80, "View has to have the layout of VIEW");

struct Crop {  // the whole pixels that the box of a view touches
    const uint8_t* pixels;
    size_t pitch;
    int height, width, channels;
};

// Along an axis, output i is the sum over t < count[i] of weights[i * taps + t] * input[first[i] + t].
struct Axis {
    int taps, *first, *count;
    float* weights;
};

// A box filter of 2 * half + 1 pixels and a part of one more at either end; weights in 65536ths.
struct Box {
    int half;
    uint16_t whole, part;
    uint16_t up, down, rounding;  // sums get binary places by a factor `up` and lose them by `down` 65536ths
};

// What a view needs besides its pixels.
struct Workspace {
    Axis across, down;
    int ring_rows, pitch;  // the ring holds the last horizontally resampled rows, a power of two, [channel, column]
    float *groups, *mixed, *ring;
    const float** taps;
    uint8_t *bytes, *line;
    uint16_t* blur;
};

const int MAX_ROWS = 16, MAX_BLOCK = 96;

// The box whose threefold application has the variance radius^2 (Gwosdek et al., SSVM 2011).
Box box_of(double radius) {
    double variance = radius * radius / 3, half = (int)((sqrt(12 * variance + 1) - 1) / 2), next = half + 1;
    double part = (2 * half + 1) * (half * next - 3 * variance) / (6 * (variance - next * next));
    double whole = 65536 / (2 * (half + part) + 1);
    Box box = {(int)half, (uint16_t)(whole < 65535 ? whole : 65535), 0, 1, 0, 0};
    box.part = (uint16_t)((65536 - (2 * box.half + 1) * box.whole) / 2);
    while (255 * (2 * box.half + 2) * box.up * 2 < 65536) box.up *= 2;
    box.down = (uint16_t)(65536 / box.up);
    box.rounding = (uint16_t)(box.up / 2 + 1);  // the 1 makes up for two truncations
    return box;
}

template <typename T>
void take(T*& start, char*& free, size_t count) {
    start = (T*)free;
    free += (count * sizeof(T) + 63) / 64 * 64;
}

void take_axis(Axis& axis, char*& free, double extent, int size) {
    axis.taps = (int)ceil(4 * (extent > size ? extent / size : 1));
    take(axis.first, free, size);
    take(axis.count, free, size);
    take(axis.weights, free, (size_t)size * axis.taps);
}

// Lay out the workspace of a view in the memory from `free` on (null to measure it); the end of it.
char* take_workspace(Workspace& w, char* free, const View& view, const Crop& crop, int size) {
    const size_t channels = crop.channels == 3 ? 3 : 1, side = size + 2 * (box_of(view.blur_radius).half + 1);
    take_axis(w.across, free, view.box[2], size);
    take_axis(w.down, free, view.box[3], size);
    w.pitch = ((int)channels * size + MAX_BLOCK - 1) / MAX_BLOCK * MAX_BLOCK;
    for (w.ring_rows = MAX_ROWS; w.ring_rows < w.down.taps + MAX_ROWS;) w.ring_rows *= 2;
    take(w.bytes, free, channels * crop.width * MAX_ROWS);
    take(w.groups, free, channels * crop.width * MAX_ROWS);
    take(w.mixed, free, (size_t)w.pitch * MAX_ROWS);
    take(w.ring, free, (size_t)w.pitch * w.ring_rows);
    take(w.taps, free, w.down.taps);
    take(w.line, free, w.pitch);
    take(w.blur, free, 2 * side * side);
    return free;
}

#define WIDE 16
namespace basic {
#include "crops_kernel.h"
}
#undef WIDE

#if defined(__x86_64__) && !defined(__clang__)
#define MORE_KERNELS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define WIDE 32
namespace avx2 {
#include "crops_kernel.h"
}
#undef WIDE
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,prefer-vector-width=512")
#define WIDE 64
namespace avx512 {
#include "crops_kernel.h"
}
#pragma GCC pop_options
#endif

typedef void (*Render)(const View& view, const Crop& crop, const Workspace& w, int size, uint8_t* out);

// `level` 0: basic instructions, 1: at most AVX2, 2: whatever the machine has.
Render choose(int level) {
#ifdef MORE_KERNELS
    // VBMI marks the processors that hardly slow down for AVX-512; they have all the rest.
    if (level > 1 && __builtin_cpu_supports("avx512vbmi")) return avx512::render;
    if (level > 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::render;
#endif
    (void)level;
    return basic::render;
}

bool is_finite(double value) {  // isfinite is always true under -ffinite-math-only
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits >> 52 & 0x7ff) != 0x7ff;
}

bool is_sound(const View& view, int height, int width) {
    const double *box = view.box, slack = 1e-6, numbers[] = {box[0], box[1], box[2], box[3], view.blur_radius};
    for (double number : numbers)
        if (!is_finite(number)) return false;
    for (int operation : view.order)
        if (operation < -1 || operation > HUE) return false;
    return box[0] >= 0 && box[1] >= 0 && box[2] > 2 * slack && box[3] > 2 * slack && box[0] + box[2] <= width + slack &&
           box[1] + box[3] <= height + slack && view.blur_radius >= 0 && view.blur_radius <= 60;
}

Crop crop_of(const View& view, const uint8_t* pixels, int height, int width, int channels) {
    int left = (int)view.box[0], right = (int)ceil(view.box[0] + view.box[2]);
    int top = (int)view.box[1], bottom = (int)ceil(view.box[1] + view.box[3]);
    size_t pitch = (size_t)width * channels;
    return {pixels + top * pitch + (size_t)left * channels, pitch, (bottom < height ? bottom : height) - top,
            (right < width ? right : width) - left, channels};
}

}  // namespace

// Returns -1 when all is well, -2 when memory is short, else the number of the first view that cannot be rendered.
extern "C" int render_views(const uint8_t* pixels, int height, int width, int channels, const View* views, int count,
                            uint8_t* out, ptrdiff_t stride, int size, int level) {
    const Render render = choose(level);
    Workspace workspace;
    size_t most = 64;
    for (int i = 0; i < count; i++) {
        if (!is_sound(views[i], height, width)) return i;
        const Crop crop = crop_of(views[i], pixels, height, width, channels);
        size_t bytes = (size_t)take_workspace(workspace, nullptr, views[i], crop, size);
        most = bytes > most ? bytes : most;
    }
    char* memory = (char*)aligned_alloc(64, most);
    if (memory == nullptr) return -2;
    for (int i = 0; i < count; i++) {
        const Crop crop = crop_of(views[i], pixels, height, width, channels);
        take_workspace(workspace, memory, views[i], crop, size);
        render(views[i], crop, workspace, size, out + i * stride);
    }
    free(memory);
    return -1;
}
