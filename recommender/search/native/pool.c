/* A few threads that do the items of one phase after another.

   Nobody waits for a thread, only for items: a phase is over when its last item is done, whoever did it.
   So a thread that the system has put aside, or that is still asleep, costs nothing but its help. */
#define _GNU_SOURCE /* for affinities */
#include "kernels.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define SPINS_ASLEEP 4000 /* looks for a new job, some 200 µs, before a worker sleeps */
#define SPINS_POLITE 2000  /* looks for a phase's end before it lets others run */

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

struct Pool {
    int workers;
    pthread_t *threads;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_uint generation; /* of jobs */
    atomic_int open, inside, ending, numbered;
    Work work;
    void *job;
    int phases;
    int *items;
    atomic_int *next, *done;
};

static void join_in(Pool *pool, int thread) {
    for (int phase = 0; phase < pool->phases; phase++) {
        int items = pool->items[phase], item;
        while ((item = atomic_fetch_add(&pool->next[phase], 1)) < items) {
            pool->work(pool->job, phase, item, thread);
            atomic_fetch_add(&pool->done[phase], 1);
        }
        for (int spins = 0; atomic_load(&pool->done[phase]) < items; spins++) {
            if (spins < SPINS_POLITE) PAUSE();
            else sched_yield();
        }
    }
}

static void *work_until_the_end(void *given) {
    Pool *pool = given;
    unsigned seen = 0;
    const int thread = 1 + atomic_fetch_add(&pool->numbered, 1);
    for (;;) {
        for (int spins = 0; spins < SPINS_ASLEEP && atomic_load(&pool->generation) == seen; spins++) PAUSE();
        if (atomic_load(&pool->generation) == seen) {
            pthread_mutex_lock(&pool->mutex);
            while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
            pthread_mutex_unlock(&pool->mutex);
        }
        if (atomic_load(&pool->ending)) return NULL;
        seen = atomic_load(&pool->generation);
        /* The job is left alone by its owner while anyone is inside, and is whole while it is open. */
        atomic_fetch_add(&pool->inside, 1);
        if (atomic_load(&pool->open)) join_in(pool, thread);
        atomic_fetch_sub(&pool->inside, 1);
    }
}

static void announce(Pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static void free_pool(Pool *pool) {
    free(pool->threads), free(pool->items), free(pool->next), free(pool->done), free(pool);
}

/* Ties each worker to a processor of its own where there is one for every thread. Left alone, a waking worker
   may be put beside its caller, and stay there for longer than the search takes. */
static void spread(Pool *pool) {
#ifdef __linux__
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) != pool->workers + 1) return;
    int processor = 0;
    while (!CPU_ISSET(processor, &allowed)) processor++; /* the caller's, if it likes */
    for (int i = 0; i < pool->workers; i++) {
        do processor++;
        while (!CPU_ISSET(processor, &allowed));
        CPU_ZERO(&one);
        CPU_SET(processor, &one);
        pthread_setaffinity_np(pool->threads[i], sizeof one, &one);
    }
#else
    (void)pool;
#endif
}

Pool *espalier_pool(int threads, int layers) {
    Pool *pool = calloc(1, sizeof *pool);
    const size_t phases = 2 + (size_t)layers * PHASES;
    if (!pool) return NULL;
    pool->threads = calloc(threads, sizeof *pool->threads), pool->items = calloc(phases, sizeof *pool->items);
    pool->next = calloc(phases, sizeof *pool->next), pool->done = calloc(phases, sizeof *pool->done);
    if (!pool->threads || !pool->items || !pool->next || !pool->done) return free_pool(pool), NULL;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int i = 0; i < threads - 1; i++) {
        if (pthread_create(&pool->threads[i], NULL, work_until_the_end, pool)) break;
        pool->workers++; /* with fewer than asked for it is slower, no more */
    }
    spread(pool);
    return pool;
}

int espalier_threads(const Pool *pool) { return pool->workers + 1; }

void espalier_close_pool(Pool *pool) {
    atomic_store(&pool->ending, 1);
    announce(pool);
    for (int i = 0; i < pool->workers; i++) pthread_join(pool->threads[i], NULL);
    pthread_mutex_destroy(&pool->mutex);
    pthread_cond_destroy(&pool->wake);
    free_pool(pool);
}

void run_phases(Pool *pool, Work work, void *job, int phases, const int *items) {
    int most = 0;
    while (atomic_load(&pool->inside)) sched_yield(); /* a late one of the last job, finding nothing to do */
    pool->work = work, pool->job = job, pool->phases = phases;
    for (int phase = 0; phase < phases; phase++) {
        if (items[phase] > most) most = items[phase];
        pool->items[phase] = items[phase]; /* ours: a late one looks here when the job is gone */
        atomic_store_explicit(&pool->next[phase], 0, memory_order_relaxed);
        atomic_store_explicit(&pool->done[phase], 0, memory_order_relaxed);
    }
    atomic_store(&pool->open, 1);
    if (pool->workers && most > 1) announce(pool);
    join_in(pool, 0);
    atomic_store(&pool->open, 0);
}
