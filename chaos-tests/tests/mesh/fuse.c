/* Preloaded into an agent, it kills it before the n-th of its durable writes (fsync, fdatasync) and of the first calls of a device
 * after one: n is in the file that HAWSER_FUSE names, and counts down. Zero: never. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int written;

static void burn(void)
{
	const char *path = getenv("HAWSER_FUSE");
	int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	char text[24] = {0};

	if (file < 0)
		return;
	long left = pread(file, text, sizeof(text) - 1, 0) > 0 ? strtol(text, NULL, 10) : 0;
	if (left > 0) {
		int length = snprintf(text, sizeof(text), "%-20ld", left - 1);
		if (pwrite(file, text, (size_t)length, 0) != length)
			abort();
		if (left == 1)
			kill(getpid(), SIGKILL);
	}
	close(file);
}

static void wrote(void)
{
	pthread_mutex_lock(&lock);
	burn();
	written = 1;
	pthread_mutex_unlock(&lock);
}

int fsync(int file)
{
	wrote();
	return (int)syscall(SYS_fsync, file);
}

int fdatasync(int file)
{
	wrote();
	return (int)syscall(SYS_fdatasync, file);
}

int connect(int socket, const struct sockaddr *address, socklen_t length)
{
	if (address->sa_family == AF_UNIX) {
		pthread_mutex_lock(&lock);
		if (written)
			burn();
		written = 0;
		pthread_mutex_unlock(&lock);
	}
	return (int)syscall(SYS_connect, socket, address, length);
}
