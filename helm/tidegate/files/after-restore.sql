-- Run this once after a restore, before any controller starts again.
--
-- Gateways refuse tables whose fence is not newer than the last they obeyed, and a backup holds an older one: without
-- this they would go on by the table of a controller that nobody remembers. A million is more changes of the leadership
-- than can lie between a backup and its restore. Whoever was leading then is not any more.
UPDATE lease SET fence = fence + 1000000, holder = '' WHERE name = 'controller';
