// The end of cuda_cpu.h: what a kernel calls to meet its fellow threads, and what emulator.py calls to launch one.
#pragma once

#define threadIdx (emu::running->current->thread)
#define blockIdx (emu::running->index)
#define blockDim (emu::running->block)
#define gridDim (emu::running->grid)
constexpr int warpSize = emu::WARP;

#define EMU_SITE int site = __builtin_LINE()  // the line of the caller: as a default argument it is evaluated there
inline void __syncthreads(EMU_SITE) { emu::barrier(false, site); }
inline int __syncthreads_count(int vote, EMU_SITE) { return emu::barrier(vote != 0, site); }
inline int __syncthreads_or(int vote, EMU_SITE) { return emu::barrier(vote != 0, site) != 0; }
inline int __syncthreads_and(int vote, EMU_SITE) { return emu::barrier(vote != 0, site) == emu::running->opened_threads; }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_SITE) { emu::publish(mask, 0, site); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMU_SITE) {
    const int base = emu::running->current->lane & ~(width - 1);
    return emu::shuffle(mask, value, base + (lane & (width - 1)), site);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
    const int lane = emu::running->current->lane, base = lane & ~(width - 1);
    return emu::shuffle(mask, value, lane - int(delta) < base ? lane : lane - int(delta), site);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_SITE) {
    const int lane = emu::running->current->lane, base = lane & ~(width - 1);
    return emu::shuffle(mask, value, lane + int(delta) >= base + width ? lane : lane + int(delta), site);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_SITE) {
    const int lane = emu::running->current->lane, base = lane & ~(width - 1);
    return emu::shuffle(mask, value, (lane ^ lanes) >= base + width ? lane : lane ^ lanes, site);
}
inline unsigned __ballot_sync(unsigned mask, int vote, EMU_SITE) {
    const unsigned slot = emu::publish(mask, int(vote != 0), site);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1u) votes |= unsigned(emu::read<int>(slot, lane)) << lane;
    return votes;
}
inline int __any_sync(unsigned mask, int vote, EMU_SITE) { return __ballot_sync(mask, vote, site) != 0; }
inline int __all_sync(unsigned mask, int vote, EMU_SITE) { return __ballot_sync(mask, vote, site) == mask; }

namespace emu {

inline unsigned char* dynamic_shared() { return running->dynamic.get(); }  // emulator.py puts it for `extern __shared__`

// Fill the static shared memory: it is all the thread-local memory that this library has.
#ifdef EMU_ASAN
inline void poison_shared() {}
#else
inline thread_local volatile char anchor;
inline int poison_library(dl_phdr_info* library, size_t, void*) {
    for (int i = 0; i < library->dlpi_phnum; ++i) {
        const auto& segment = library->dlpi_phdr[i];
        const char* start = static_cast<const char*>(library->dlpi_tls_data);
        const char* mine = const_cast<const char*>(&anchor);
        if (segment.p_type != PT_TLS || !start || mine < start || mine >= start + segment.p_memsz) continue;
        memset(library->dlpi_tls_data, POISON, segment.p_memsz);
        return 1;
    }
    return 0;
}
inline void poison_shared() {
    anchor = 0;                         // thread-local memory is made on its first use
    if (!dl_iterate_phdr(poison_library, nullptr)) { fputs("cuda_cpu.h: no shared memory found\n", stderr); abort(); }
}
#endif

template <class T> constexpr char type_code() {  // as Python's struct module names them; P for pointers, S for structs
    if (std::is_pointer<T>::value) return 'P';
    if (std::is_same<T, bool>::value) return '?';
    if (std::is_floating_point<T>::value) return sizeof(T) == 4 ? 'f' : 'd';
    if (!std::is_integral<T>::value) return 'S';
    const char code = sizeof(T) == 1 ? 'b' : sizeof(T) == 2 ? 'h' : sizeof(T) == 4 ? 'i' : 'q';
    return std::is_signed<T>::value ? code : static_cast<char>(code - 32);
}
template <class... A> const char* signature(void (*)(A...)) {
    static const char codes[] = {type_code<A>()..., 0};
    return codes;
}

struct Launch {                         // emulator.py has the same structure
    unsigned grid[3], block[3];
    unsigned long long shared_bytes, order;
    char* error;
    int error_size;
};

// A pointer or an index gone wild ends the launch with an error, not the process. (With sanitizers they report it.)
#ifdef EMU_ASAN
struct CatchFaults {};
#else
inline void on_fault(int) {             // on a stack of its own, as the fiber's may be what is broken
    fail("an access to memory that is not there");
    _longjmp(running->scheduler, 1);
}
struct CatchFaults {
    struct sigaction segment_before, bus_before;
    stack_t stack_before;
    CatchFaults() {
        alignas(16) static char memory[64 * 1024];
        stack_t stack{};
        stack.ss_sp = memory;
        stack.ss_size = sizeof memory;
        sigaltstack(&stack, &stack_before);
        struct sigaction action{};
        action.sa_handler = on_fault;
        action.sa_flags = SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &segment_before);
        sigaction(SIGBUS, &action, &bus_before);
    }
    ~CatchFaults() {
        sigaction(SIGSEGV, &segment_before, nullptr);
        sigaction(SIGBUS, &bus_before, nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};
#endif

inline int run_grid(const Launch* launch, void (*body)(void**), void** arguments) {
    static Block block;                 // keeps its stacks from launch to launch
    running = &block;
    const CatchFaults faults;
    block.error.clear();
    block.current = nullptr;
    block.threads = launch->block[0] * launch->block[1] * launch->block[2];
    block.fibers.resize(block.threads);
    block.warps.resize((block.threads + WARP - 1) / WARP);
    block.grid = dim3(launch->grid[0], launch->grid[1], launch->grid[2]);
    block.block = dim3(launch->block[0], launch->block[1], launch->block[2]);
    block.body = body;
    block.arguments = arguments;
    block.dynamic.reset(new unsigned char[launch->shared_bytes]);
    const unsigned long long total = 1ull * launch->grid[0] * launch->grid[1] * launch->grid[2];
    for (unsigned long long i = 0; i < total && block.error.empty(); ++i) {
        const unsigned long long k = launch->order == 1 ? total - 1 - i : i;
        block.index.x = k % launch->grid[0];
        block.index.y = k / launch->grid[0] % launch->grid[1];
        block.index.z = k / (1ull * launch->grid[0] * launch->grid[1]);
        memset(block.dynamic.get(), POISON, launch->shared_bytes);
        poison_shared();
        run_block(launch->order);
    }
    running = nullptr;
    if (block.error.empty()) return 0;
    block.stacks.clear();               // threads were left in their middle
    snprintf(launch->error, launch->error_size, "%s", block.error.c_str());
    return 1;
}

template <auto kernel, class... A, size_t... I>
int launch(void (*)(A...), const Launch* launch, void** arguments, std::index_sequence<I...>) {
    return run_grid(launch, [](void** a) { kernel(*static_cast<std::remove_cv_t<A>*>(a[I])...); }, arguments);
}
template <auto kernel, class... A> int launch(void (*function)(A...), const Launch* parameters, void** arguments) {
    return launch<kernel>(function, parameters, arguments, std::index_sequence_for<A...>());
}

}  // namespace emu

#define EMU_EXPORT(kernel)                                                                              \
    extern "C" __attribute__((visibility("default"))) int emu_launch(const emu::Launch* l, void** a) {  \
        return emu::launch<&kernel>(&kernel, l, a);                                                     \
    }                                                                                                   \
    extern "C" __attribute__((visibility("default"))) const char* emu_signature() { return emu::signature(&kernel); }
