/* The part of Intel's Multi-Buffer Crypto library for IPsec that tunnel::noise::bulk uses: its structures differ between versions, so
 * that this is compiled against the header of the library that is linked. */
#include <stddef.h>
#include <stdint.h>

#include <intel-ipsec-mb.h>

/* As tunnel::noise::bulk::multi has it. */
struct hawser_message {
    const uint8_t *key;
    const uint8_t *from;
    uint8_t *into;
    uint64_t len;
    uint8_t nonce[12];
    uint8_t tag[16];
};

#define BURST 32

/* A manager, or none where its code for AVX-512 does not run (without that it is no faster than others) or fails its own tests. */
IMB_MGR *hawser_mb_new(void)
{
    IMB_ARCH arch = IMB_ARCH_NONE;
    IMB_MGR *manager = alloc_mb_mgr(0);
    if (manager == NULL)
        return NULL;
    init_mb_mgr_auto(manager, &arch);
    if (arch != IMB_ARCH_AVX512 || !(manager->features & IMB_FEATURE_SELF_TEST_PASS)) {
        free_mb_mgr(manager);
        return NULL;
    }
    return manager;
}

void hawser_mb_free(IMB_MGR *manager)
{
    free_mb_mgr(manager);
}

/* Encrypts or decrypts all messages and writes their tags; 0 unless the library refused one. */
int hawser_mb_run(IMB_MGR *manager, int decrypt, struct hawser_message *messages, size_t count)
{
    for (size_t done = 0; done < count;) {
        IMB_JOB *jobs[BURST];
        uint32_t wanted = count - done < BURST ? (uint32_t)(count - done) : BURST;
        if (IMB_GET_NEXT_BURST(manager, wanted, jobs) != wanted)
            return 1;
        for (uint32_t n = 0; n < wanted; n++) {
            struct hawser_message *message = &messages[done + n];
            IMB_JOB *job = jobs[n];
            job->cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
            job->hash_alg = IMB_AUTH_CHACHA20_POLY1305;
            job->cipher_direction = decrypt ? IMB_DIR_DECRYPT : IMB_DIR_ENCRYPT;
            job->chain_order = decrypt ? IMB_ORDER_HASH_CIPHER : IMB_ORDER_CIPHER_HASH;
            job->enc_keys = message->key;
            job->dec_keys = message->key;
            job->key_len_in_bytes = 32;
            job->src = message->from;
            job->dst = message->into;
            job->cipher_start_src_offset_in_bytes = 0;
            job->msg_len_to_cipher_in_bytes = message->len;
            job->hash_start_src_offset_in_bytes = 0;
            job->msg_len_to_hash_in_bytes = message->len;
            job->iv = message->nonce;
            job->iv_len_in_bytes = sizeof(message->nonce);
            job->auth_tag_output = message->tag;
            job->auth_tag_output_len_in_bytes = sizeof(message->tag);
            job->u.CHACHA20_POLY1305.aad = NULL;
            job->u.CHACHA20_POLY1305.aad_len_in_bytes = 0;
#if IMB_VERSION_NUM >= 0x20000
            imb_set_session(manager, job);
#endif
        }
        uint32_t finished = IMB_SUBMIT_BURST(manager, wanted, jobs);
        /* This cipher is done at once. What is not done was refused, or would be done to memory that is another's by then. */
        if (finished != wanted)
            return 1;
        for (uint32_t n = 0; n < wanted; n++)
            if (jobs[n]->status != IMB_STATUS_COMPLETED)
                return 1;
        done += wanted;
    }
    return 0;
}
