BEGIN TRANSACTION;
CREATE TABLE cosmorama_jobs (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	dialect VARCHAR(64) NOT NULL, 
	model VARCHAR(256) NOT NULL, 
	priority INTEGER NOT NULL, 
	request TEXT NOT NULL, 
	labels TEXT NOT NULL, 
	idempotency_key VARCHAR(256), 
	fingerprint VARCHAR(64) NOT NULL, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	finished_at FLOAT, 
	deadline_at FLOAT, 
	holder VARCHAR(64), 
	lease_until FLOAT, 
	attempts INTEGER NOT NULL, 
	blamed INTEGER NOT NULL, 
	blamed_at INTEGER DEFAULT '0' NOT NULL, 
	waiter VARCHAR(64), 
	waiter_until FLOAT, 
	cancel_error TEXT, 
	stage VARCHAR(16) NOT NULL, 
	step INTEGER NOT NULL, 
	total INTEGER NOT NULL, 
	remaining_s FLOAT, 
	error TEXT, 
	outcome TEXT, 
	media_type VARCHAR(64), 
	result_key VARCHAR(256), 
	result_bytes BIGINT NOT NULL, 
	input_bytes BIGINT NOT NULL, 
	webhook_url TEXT, 
	webhook_due FLOAT, 
	webhook_attempts INTEGER NOT NULL, 
	UNIQUE (owner, idempotency_key), 
	UNIQUE (id)
);
INSERT INTO "cosmorama_jobs" VALUES(1,'job_290b8fa8860923c1ee2e336d','succeeded','me','predict1','fake',1,'{"version":1,"request":{"prompt":"a red ball","negative_prompt":"The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality.","prompt_upsampling":true,"image":null,"video":null,"seed":3,"guidance_scale":7.0,"steps":3,"width":1280,"height":704,"frames":9,"seconds":null,"fps":24,"solver":"euler","guidance_interval":[0.0,1.0],"guidance_rescale":0.0,"conditioning_frames":0,"output":{"container":"mp4","codec":null,"quality":7},"task":null,"keep":"last","flow_shift":null,"reuse":0.0,"vae_tiling":0,"controls":[],"control_guidance":null,"chunk_frames":null,"first_conditioning_frames":null,"conditioning_indexes":null,"action":null,"adapters":[],"model":"fake","fit":false,"usual":null,"warnings":[],"target":null,"source_rate":false}}','{"order": "17"}','k','c2a65132189167958cc9df54ffbeab74d7b0a34aafb4eee5e165515b46458fc5',1.79590907947043633462e+09,1.79590907962976241117e+09,1.79590907977991700176e+09,NULL,NULL,NULL,1,0,0,NULL,NULL,NULL,'done',0,0,0.0,NULL,'{"path":"clip.mp4","seed":3,"prompt":"a red ball","width":1280,"height":704,"frames":9,"fps":24.0,"timings":{"denoise":0.03},"action":null,"counts":{},"warnings":[],"checks":[]}','video/mp4','results/job_290b8fa8860923c1ee2e336d/1/clip.mp4',126,0,NULL,NULL,0);
INSERT INTO "cosmorama_jobs" VALUES(2,'job_75668077c17339c0e2f2e923','failed','','openai','fake',0,'{"version":1,"request":{"prompt":"a red ball","negative_prompt":"The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality.","prompt_upsampling":true,"image":null,"video":null,"seed":3,"guidance_scale":7.0,"steps":3,"width":1280,"height":704,"frames":9,"seconds":null,"fps":24,"solver":"euler","guidance_interval":[0.0,1.0],"guidance_rescale":0.0,"conditioning_frames":0,"output":{"container":"mp4","codec":null,"quality":7},"task":null,"keep":"last","flow_shift":null,"reuse":0.0,"vae_tiling":0,"controls":[],"control_guidance":null,"chunk_frames":null,"first_conditioning_frames":null,"conditioning_indexes":null,"action":null,"adapters":[],"model":"fake","fit":false,"usual":null,"warnings":[],"target":null,"source_rate":false}}','{}',NULL,'',1.79590907979095149036e+09,1.79590907983872175219e+09,1.79590907985884690287e+09,NULL,NULL,NULL,1,0,0,NULL,NULL,NULL,'prepare',0,0,0.0,'{"type": "invalid_media_error", "status": 413, "message": "cannot be read", "problems": [], "field": "image"}',NULL,NULL,NULL,0,0,NULL,NULL,0);
INSERT INTO "cosmorama_jobs" VALUES(3,'job_4cdeef6e6efb56006bdda268','running','','cosmorama','fake',1,'{"version":1,"request":{"prompt":"a red ball","negative_prompt":"The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality.","prompt_upsampling":true,"image":null,"video":null,"seed":3,"guidance_scale":7.0,"steps":3,"width":1280,"height":704,"frames":9,"seconds":null,"fps":24,"solver":"euler","guidance_interval":[0.0,1.0],"guidance_rescale":0.0,"conditioning_frames":0,"output":{"container":"mp4","codec":null,"quality":7},"task":null,"keep":"last","flow_shift":null,"reuse":0.0,"vae_tiling":0,"controls":[],"control_guidance":null,"chunk_frames":null,"first_conditioning_frames":null,"conditioning_indexes":null,"action":null,"adapters":[],"model":"fake","fit":false,"usual":null,"warnings":[],"target":null,"source_rate":false}}','{}',NULL,'',1.79590907988231849668e+09,1.7959090799066779613e+09,NULL,NULL,'server-1-0123abcd',1.79590908090667796133e+09,1,0,0,NULL,NULL,NULL,'prepare',0,0,NULL,NULL,NULL,NULL,NULL,0,0,NULL,NULL,0);
INSERT INTO "cosmorama_jobs" VALUES(4,'job_46e6cebde58e09d5dbf8d8a5','queued','','cosmorama','fake',1,'{"version":1,"request":{"prompt":"waits","negative_prompt":"The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality.","prompt_upsampling":false,"image":"https://example.com/a.png","video":null,"seed":3,"guidance_scale":7.0,"steps":3,"width":1280,"height":704,"frames":9,"seconds":null,"fps":24,"solver":"euler","guidance_interval":[0.0,1.0],"guidance_rescale":0.0,"conditioning_frames":1,"output":{"container":"mp4","codec":null,"quality":7},"task":null,"keep":"last","flow_shift":null,"reuse":0.0,"vae_tiling":0,"controls":[],"control_guidance":null,"chunk_frames":null,"first_conditioning_frames":null,"conditioning_indexes":null,"action":null,"adapters":[],"model":"fake","fit":false,"usual":null,"warnings":[],"target":null,"source_rate":false}}','{}',NULL,'',1.79590907991774582867e+09,NULL,NULL,1.89590907991832566259e+09,NULL,NULL,0,0,0,NULL,NULL,NULL,'queued',0,0,NULL,NULL,NULL,NULL,NULL,0,0,'http://example.com/done',NULL,0);
INSERT INTO "cosmorama_jobs" VALUES(5,'job_b2092c28886af6f65e150737','cancelled','','cosmorama','fake',1,'{"version":1,"request":{"prompt":"a red ball","negative_prompt":"The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality.","prompt_upsampling":true,"image":null,"video":null,"seed":3,"guidance_scale":7.0,"steps":3,"width":1280,"height":704,"frames":9,"seconds":null,"fps":24,"solver":"euler","guidance_interval":[0.0,1.0],"guidance_rescale":0.0,"conditioning_frames":0,"output":{"container":"mp4","codec":null,"quality":7},"task":null,"keep":"last","flow_shift":null,"reuse":0.0,"vae_tiling":0,"controls":[],"control_guidance":null,"chunk_frames":null,"first_conditioning_frames":null,"conditioning_indexes":null,"action":null,"adapters":[],"model":"fake","fit":false,"usual":null,"warnings":[],"target":null,"source_rate":false}}','{}',NULL,'',1.79590907991979837417e+09,NULL,1.7959090799220826626e+09,NULL,NULL,NULL,0,0,0,NULL,NULL,NULL,'queued',0,0,0.0,'{"type": "cancelled", "status": 499, "message": "cancelled", "problems": [], "field": null}',NULL,NULL,NULL,0,0,NULL,NULL,0);
CREATE TABLE cosmorama_previews (
	job_id VARCHAR(64) NOT NULL, 
	number BIGINT NOT NULL, 
	jpeg BLOB NOT NULL, 
	PRIMARY KEY (job_id)
);
CREATE TABLE cosmorama_schema (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "cosmorama_schema" VALUES(2);
CREATE TABLE cosmorama_servers (
	id VARCHAR(64) NOT NULL, 
	role VARCHAR(16) NOT NULL, 
	models TEXT NOT NULL, 
	ready BOOLEAN NOT NULL, 
	places INTEGER NOT NULL, 
	active INTEGER NOT NULL, 
	started_at FLOAT NOT NULL, 
	seen_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "cosmorama_servers" VALUES('server-1-0123abcd','all','[["fake", {"model": "fake", "modes": ["text2world", "image2world", "video2world"], "sizes": [{"width": 960, "height": 960}, {"width": 960, "height": 704}, {"width": 704, "height": 960}, {"width": 1280, "height": 704}, {"width": 704, "height": 1280}], "frames": {"multiple": 8, "maximum": 121}, "fps": {"low": 12.0, "high": 40.0}, "guidance_scale": {"low": 1.0, "high": 10.0}, "steps": {"low": 1.0, "high": 50.0}, "prompt_words": 250, "prompt_tokens": null, "negative_prompts": true, "ignores": [], "conditioning_frames": [9, 1], "conditioning_indexes": false, "solvers": ["euler", "unipc", "dpmpp_2m"], "default_solver": "euler", "family": "microcosm", "defaults": {"width": 1280, "height": 704, "frames": 121, "fps": 24.0, "steps": 35, "guidance_scale": 7.0, "negative_prompt": "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality.", "vae_tiling": 0}, "size_multiple": null, "max_pixels": 921600, "flow_shift": null, "controls": [], "control_guidance": null, "action_domains": [], "adapters": [], "adapter_layers": {}, "reuse": {"low": 0.0, "high": 1.0}, "vae_tiles": [], "elsewhere": [], "longest": null}]]',1,1,0,1.79590907958460688589e+09,1.79590907984861183161e+09);
CREATE TABLE cosmorama_watched (
	job_id VARCHAR(64) NOT NULL, 
	until FLOAT NOT NULL, 
	PRIMARY KEY (job_id)
);
CREATE INDEX cosmorama_jobs_by_state ON cosmorama_jobs (state, seq);
CREATE INDEX cosmorama_jobs_by_webhook ON cosmorama_jobs (webhook_due);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('cosmorama_jobs',5);
COMMIT;
